"""Both phases, trained by two processes together on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from defectory.engine import devices
from defectory.errors import ConfigError, StageError
from defectory.events import Event, Progress, StageEnded
from defectory.runs.graph import UP_TO_DATE, states_of
from defectory.runs.runner import check_stages
from defectory.runs.stage import Run
from defectory.stages.all import CHECKS, run_all, stages_of
from defectory.stages.parts import before_all
from defectory.stages.parts.estimate.estimate import StageEstimate, estimate_run

Open = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
PHASES = ["learn-concept", "learn-condition"]
WEIGHTS = {"concept": "base/unet", "control": "controlnet"}
"""Of each stage's folder."""
EXACT = ["concept.training.mixed_precision=no", "condition.training.mixed_precision=no"]
TOGETHER = [*EXACT, "training_processes=2"]
HOOK = """
import os, sys, time
rank, found, held = os.environ.get("RANK"), os.environ["WATCHED"], []
def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"):
        os.write(descriptor, f"{args[0]}\\n".encode())
def hold(event, args):
    if event == "os.rename" and str(args[1]).endswith("state.safetensors"):
        held.append(args)
        if len(held) == int(os.environ["HELD_AT"]):
            open(os.environ["HELD_WHILE"] + ".now", "w").close()
        while len(held) == int(os.environ["HELD_AT"]) and os.path.exists(os.environ["HELD_WHILE"]):
            time.sleep(0.01)
if rank == "0":
    sys.addaudithook(hold)
elif rank is not None:
    descriptor = os.open(found, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"watched\\n")
    sys.addaudithook(watch)
"""
"""A `sitecustomize`: the main process waits before it writes a certain checkpoint, and the other one notes which files
it opens for writing.
"""


def outcome_of(run: Path, stage: str) -> dict[str, Any]:
    """Losses and weights of a phase."""
    lines = [json.loads(line) for line in (run / stage / "log.jsonl").read_text().splitlines()]
    losses = [line.get("loss", line.get("held_out_loss")) for line in lines]
    tensors = load_file(run / stage / WEIGHTS[stage] / "diffusion_pytorch_model.safetensors")
    return {"losses": losses, "weights": tensors}


def until(events: Iterator[Event], stage: str, done: int) -> None:
    """Follow a run until a stage has done some steps."""
    for event in events:
        if isinstance(event, Progress) and event.stage == stage and "loss" in event.note and event.done >= done:
            return
    raise AssertionError("it ended before")


def resumed(events: Iterator[Event]) -> tuple[str, int]:
    """Follow a run until a stage resumes, and return the stage and the step."""
    return next((e.stage, e.done) for e in events if isinstance(e, Progress) and "resumed" in e.note)


def wait_until_held(held: Path) -> None:
    """Wait until the main process is about to write its checkpoint."""
    now, deadline = held.with_name(f"{held.name}.now"), time.monotonic() + 60
    while not now.exists():
        assert time.monotonic() < deadline, "no checkpoint is written"
        time.sleep(0.01)
    now.unlink()


@pytest.fixture(scope="module")
def prepared(
    tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory, open_tiny: Open
) -> tuple[Path, dict[str, Any], dict[str, dict[str, Any]]]:
    """A folder whose run has its tiles and no phase, the settings, and the outcome of one process."""
    folder, settings, _ = tiny_run
    alone, copy = (tmp_path_factory.mktemp(name) / "copy" for name in ("alone", "together"))
    shutil.copytree(folder, alone)
    list(run_all(open_tiny(alone, settings, *EXACT), only=PHASES))
    kept = shutil.ignore_patterns("concept", "control", "cache")
    shutil.copytree(folder, copy, ignore=kept)
    return copy, settings, {stage: outcome_of(alone / "run", stage) for stage in WEIGHTS}


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file while which the main process does not write the checkpoint `HELD_AT`."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    file = tmp_path / "held"
    file.touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("WATCHED", str(tmp_path / "watched"))
    monkeypatch.setenv("HELD_WHILE", str(file))
    return file


def require_equal(found: dict[str, Any], alone: dict[str, Any]) -> None:
    """Require the losses and weights of one process, up to rounding."""
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=5e-5)


def require_one_writer(watched: Path, folder: Path) -> None:
    """Require that no process but the main one wrote into a folder."""
    written = watched.read_text().splitlines()
    assert "watched" in written
    assert not [path for path in written if path.startswith(str(folder))]


def test_two_processes_of_which_one_is_killed_end_with_the_losses_and_weights_of_one(
    prepared: tuple[Path, dict[str, Any], dict[str, dict[str, Any]]],
    open_tiny: Open,
    held: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    children: Callable[[], list[psutil.Process]],
) -> None:
    folder, settings, alone = prepared
    only = ["learn-concept"]
    # killed after the checkpoint of step 4
    monkeypatch.setenv("HELD_AT", "2")
    events = run_all(open_tiny(folder, settings, *TOGETHER), only=only)
    until(events, "learn-concept", 4)
    wait_until_held(held)
    started = children()
    assert len(started) == 2
    next(child for child in started if child.environ()["RANK"] == "1").kill()
    held.unlink()
    with pytest.raises(StageError, match=r"^learn-concept, process 1: its process was killed by signal 9.*run again"):
        list(events)
    assert not children()
    assert not (folder / "run" / "concept").exists()
    events = run_all(open_tiny(folder, settings, *EXACT), only=only)
    assert resumed(events) == ("learn-concept", 4)
    list(events)
    require_equal(outcome_of(folder / "run", "concept"), alone["concept"])
    require_one_writer(tmp_path / "watched", folder)


@pytest.mark.long
def test_one_process_then_two_then_one_end_with_the_losses_and_weights_of_one(
    prepared: tuple[Path, dict[str, Any], dict[str, dict[str, Any]]],
    open_tiny: Open,
    held: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    children: Callable[[], list[psutil.Process]],
) -> None:
    folder, settings, alone = prepared
    list(run_all(open_tiny(folder, settings, *EXACT), only=PHASES[:1]))
    events = run_all(open_tiny(folder, settings, *EXACT), only=PHASES)
    # one process begins and stops, two go on and stop in step 5, one ends it
    until(events, "learn-condition", 2)
    events.close()
    monkeypatch.setenv("HELD_AT", "1")
    events = run_all(open_tiny(folder, settings, *TOGETHER), only=PHASES)
    assert resumed(events) == ("learn-condition", 2)
    until(events, "learn-condition", 4)
    wait_until_held(held)
    threading.Timer(1.0, held.unlink).start()
    events.close()
    assert not children()
    events = run_all(open_tiny(folder, settings, *EXACT), only=PHASES)
    assert resumed(events) == ("learn-condition", 5)
    list(events)

    require_equal(outcome_of(folder / "run", "control"), alone["control"])
    require_one_writer(tmp_path / "watched", folder)


@pytest.mark.parametrize(
    ("overrides", "num_gpus", "message"),
    [
        (
            ["training_processes=3"],
            0,
            r"^training_processes: 3 processes cannot share a step of 1 x 4 tiles equally; "
            r"set it to 2, or concept\.training\.batch_size to 6$",
        ),
        (
            [
                "training_processes=4",
                "condition.training.gradient_accumulation_steps=2",
                "condition.training.batch_size=3",
            ],
            0,
            # three could share the step of phase 2, but not that of phase 1
            r"a step of 2 x 3 tiles equally; set it to 2, or condition\.training\.batch_size to 4$",
        ),
        (["training_processes=4", "device=cuda"], 2, r"4 processes, but this machine shows 2 GPUs; set it to 2"),
        (["training_processes=2", "device=cuda:1"], 2, r"cannot train together on the device cuda:1; set it to 1"),
    ],
)
def test_what_cannot_train_together_is_one_line_before_the_run(
    tiny_run: TinyRun,
    open_tiny: Open,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    num_gpus: int,
    message: str,
) -> None:
    folder, settings, _ = tiny_run
    monkeypatch.setattr(devices, "usable_device", lambda name: name)
    monkeypatch.setattr(before_all, "usable_device", lambda name: name)
    monkeypatch.setattr(before_all, "num_gpus", lambda: num_gpus)
    stale = ["concept.training.num_steps=7", "condition.training.num_steps=7"]
    run = open_tiny(folder, settings, *stale, *overrides)
    with pytest.raises(ConfigError, match=message):
        check_stages(run, stages_of(run.config), checks=CHECKS)


def test_the_number_of_processes_makes_no_result_stale(tiny_run: TinyRun, open_tiny: Open) -> None:
    folder, settings, _ = tiny_run
    run = open_tiny(folder, settings, "training_processes=2")
    assert {state.state for state in states_of(run, stages_of(run.config)).values()} == {UP_TO_DATE}


def test_a_plan_counts_the_tiles_and_the_memory_of_every_process(tiny_run: TinyRun, open_tiny: Open) -> None:
    folder, settings, _ = tiny_run
    found: list[StageEstimate] = []
    for processes in (1, 2):
        run = open_tiny(folder, settings, "condition.training.num_steps=7", f"training_processes={processes}")
        estimated = estimate_run(run, stages_of(run.config), only=["learn-condition"])
        found.extend(estimated.stages)
    alone, together = found
    assert (alone.num_together, alone.tiles_at_a_time) == (1, 4)
    assert (together.num_together, together.tiles_at_a_time) == (2, 2)
    assert together.memory_bytes > 2 * alone.memory_bytes
