"""A finished run against damage, missing sources, full disks and other processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from defectory.cli.main import app
from defectory.config.template import project_template
from defectory.engine.backbones import known
from defectory.errors import InputError, OutputError, StageError, WeightsError
from defectory.events import Event, Notice, Progress, StageEnded, Work
from defectory.files import MARKER_NAME, digest_file, read_manifest
from defectory.folders.claims import claim_folder
from defectory.folders.marker import is_ours
from defectory.folders.swap import WORK_NAME
from defectory.runs.sources import MissingSource, Sources, source_listing
from defectory.runs.stage import Run, Stage
from defectory.runs.store import RunStore
from defectory.runs.verify import verify_run, verify_stage
from defectory.stages import all as all_module
from defectory.stages.all import run_all, stages_of
from defectory.stages.curate import prior_images
from defectory.stages.split import Split

Open = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture
def project(tiny_run: TinyRun, tmp_path: Path, open_tiny: Open) -> Run:
    """A copy of the finished run."""
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    return open_tiny(tmp_path / "copy", settings)


def digests(project: Run) -> dict[str, str]:
    found = {stage.name: read_manifest(project.folder / stage.folder) for stage in stages_of(project.config)}
    # the report tells the seconds of each stage
    return {
        name: str(manifest["info"]["output_digest"])
        for name, manifest in found.items()
        if manifest and name != "report"
    }


def made(events: list[Event]) -> set[str]:
    return {event.stage for event in events if isinstance(event, StageEnded) and not event.skipped}


def notices(events: list[Event]) -> dict[str, str]:
    """What each stage said first."""
    found = [event for event in events if isinstance(event, Notice) and event.stage != "check"]
    return {event.stage: event.text for event in reversed(found)}


def flip(path: Path) -> None:
    """Change one bit, and leave size and time as they were."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def stage_named(project: Run, name: str) -> Stage:
    return next(stage for stage in stages_of(project.config) if stage.name == name)


def test_a_finished_run_is_whole(project: Run) -> None:
    assert {
        (finding.state, finding.damage, finding.extra) for finding in verify_run(project, stages_of(project.config))
    } == {("whole", "", ())}
    assert not (project.folder / WORK_NAME).exists()


def test_damage_of_every_kind_is_noticed_and_mended(project: Run) -> None:
    before = digests(project)
    flip(sorted((project.folder / "data" / "images").rglob("*.png"))[3])
    sorted((project.folder / "tiles" / "images").glob("*.png"))[0].unlink()
    flip(project.folder / "concept" / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    (project.folder / "control" / "log.jsonl").write_text('{"step": 1, "lo')
    plan = project.folder / "plan" / "plan.json"
    plan.write_text(plan.read_text().replace('"seed": ', '"seed": 1', 1))
    (project.folder / "calibration" / "stage.json").write_text('{"inputs_digest": "')
    first, second = sorted((project.folder / "drafts" / "images").glob("*.png"))[:2]
    shutil.copyfile(first, second)
    flip(project.folder / "curation" / "decisions.json")
    (project.folder / "synthetic" / "stage.json").write_text("[1, 2]")
    (project.folder / "segment" / "real-seed0" / "log.json").write_text("{}")
    flip(project.folder / "test_tiles" / "tileset.json")
    (project.folder / "evaluation" / MARKER_NAME).write_text("{")
    flip(project.folder / "best_segmenter" / "card.json")
    (project.folder / "report" / MARKER_NAME).unlink()

    damaged = {
        finding.stage for finding in verify_run(project, stages_of(project.config)) if finding.state == "damaged"
    }
    untouched = {"split", "finalize", "certify", "segment-synthetic-seed0", "segment-synthetic_then_real-seed0"}
    assert damaged == {stage.name for stage in stages_of(project.config)} - untouched

    events = list(run_all(project))
    # a marker alone is written anew, without the stage
    assert made(events) == damaged - {"evaluate", "report"}
    assert all(text.endswith("it is made anew") for text in notices(events).values())
    assert "is missing" in notices(events)["tiles"]
    assert digests(project) == before
    assert {finding.state for finding in verify_run(project, stages_of(project.config))} == {"whole"}
    assert not made(list(run_all(project)))


def test_of_damaged_drafts_only_their_batch_is_drawn_again(project: Run) -> None:
    before = digests(project)
    flip(sorted((project.folder / "drafts" / "without").glob("*.png"))[-1])
    progress = [event for event in run_all(project) if isinstance(event, Progress) and event.stage == "synthesize"]
    assert [(event.done, event.total) for event in progress] == [(8, 8)]
    assert digests(project) == before


def test_a_stage_alone_refuses_to_read_what_is_damaged_and_says_what_to_do(project: Run) -> None:
    flip(project.folder / "plan" / "plan.json")
    with pytest.raises(StageError, match=r"plan\.json is changed or damaged; `defectory run` makes stage plan anew"):
        list(
            run_all(replace(project, config=_changed(project, "synthesis", num_inference_steps=3)), only=["synthesize"])
        )


def _changed(project: Run, section: str, **values: object) -> Any:
    return project.config.model_copy(update={section: getattr(project.config, section).model_copy(update=values)})


def test_a_finished_run_needs_its_source_no_more(project: Run) -> None:
    before = digests(project)
    (project.sources.folder / "source").rename(project.sources.folder / "unmounted")
    (project.sources.folder / "source").mkdir()
    for empty in (True, False):
        events = list(run_all(project))
        assert not made(events)
        assert "is not there; what was made from it is used as it is" in notices(events)["import"]
        if empty:
            (project.sources.folder / "source").rmdir()
    shutil.rmtree(project.folder / "report")
    assert made(list(run_all(project))) == {"report"}
    # and where the source is needed, the imported copy is not lost
    with pytest.raises(InputError, match="no such file"):
        list(run_all(replace(project, config=_changed(project, "data", min_area_px=3))))
    assert digests(project) == before
    assert {finding.state for finding in verify_run(project, stages_of(project.config))} == {"whole"}


def test_a_base_that_is_not_there_matters_only_to_stages_that_read_it(
    project: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> Path:
        raise WeightsError(name, "neither a folder nor a known base", "check the path")

    monkeypatch.setattr(known, "resolve_base", gone)
    events = list(run_all(project))
    assert not made(events)
    assert set(notices(events)) == {"learn-concept"}
    with pytest.raises(WeightsError, match="neither a folder"):
        list(run_all(replace(project, config=_changed(project, "prompts", instance_token="xyz"))))
    assert {finding.state for finding in verify_run(project, stages_of(project.config))} == {"whole"}


def test_copies_in_the_run_folder_come_back_and_edited_ones_are_kept(project: Run) -> None:
    scores, report = (project.folder / "scores.json").read_bytes(), (project.folder / "report.html").read_bytes()
    (project.folder / "scores.json").unlink()
    (project.folder / "report.html").write_text("my own words")
    events = list(run_all(project))
    assert not made(events)
    assert (project.folder / "scores.json").read_bytes() == scores
    assert (project.folder / "report.html").read_bytes() == report
    assert (project.folder / "kept-report.html").read_text() == "my own words"


def test_a_users_files_in_a_stage_folder_are_carried_over(project: Run) -> None:
    (project.folder / "plan" / "notes.txt").write_text("mine")
    flip(project.folder / "plan" / "bank.json")
    assert "plan" in made(list(run_all(project)))
    assert (project.folder / "plan" / "notes.txt").read_text() == "mine"
    finding = verify_stage(project, stage_named(project, "plan"))
    assert (finding.state, finding.extra) == ("whole", ("notes.txt",))


def test_a_users_folder_in_the_place_of_a_stage_is_refused_before_any_work(project: Run) -> None:
    (project.folder / "plan").rename(project.folder / "elsewhere")
    (project.folder / "plan").mkdir()
    (project.folder / "plan" / "ground-floor.dwg").write_text("mine")
    shutil.rmtree(project.folder / "split")
    with pytest.raises(
        OutputError, match=r"plan: was not made by Defectory and is not empty \(it holds ground-floor\.dwg\)"
    ):
        list(run_all(project))
    assert not (project.folder / "split").exists()
    assert (project.folder / "plan" / "ground-floor.dwg").read_text() == "mine"


def test_a_run_folder_that_is_not_ours_is_refused(project: Run, tmp_path: Path) -> None:
    (tmp_path / "users" / "data").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"it holds data\); set `out` to a new folder"):
        list(run_all(replace(project, folder=tmp_path / "users")))
    assert [p.name for p in (tmp_path / "users").iterdir()] == ["data"]


def test_the_old_outcome_stays_when_the_new_one_cannot_be_finished(
    project: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(project)
    stages = stages_of(project.config)

    class Full(Split):
        def cache_key(self, config: Any, sources: Sources) -> dict[str, object]:
            return {"other": 1}

        def run(self, inputs: RunStore, config: Any, out: Path) -> Work[str]:
            yield Progress(done=0, total=1)
            raise OutputError("split.json", "cannot be written (no space left on device)", "free space")

    broken = tuple(Full() if stage.name == "split" else stage for stage in stages)
    monkeypatch.setattr(all_module, "stages_of", lambda _: broken)
    with pytest.raises(OutputError, match="no space left"):
        list(run_all(project, only=["split"]))
    assert digests(project) == before
    assert not (project.folder / WORK_NAME / "split").exists()
    # a disk that became too small during the run is reported before the stage writes anything
    monkeypatch.setattr(all_module, "CHECKS", replace(all_module.CHECKS, before_all=lambda *_: ()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        OutputError,
        match=r"the disk has 0 MB free, but about [0-9]+ MB are needed beside the old outcome; free space; nothing was "
        r"changed",
    ):
        list(run_all(project, only=["split"]))
    assert digests(project) == before


def test_a_swap_killed_on_either_side_is_completed(project: Run) -> None:
    before = digests(project)
    stage = stage_named(project, "plan")
    # whole, and not yet in place
    (project.folder / WORK_NAME).mkdir()
    (project.folder / "plan").rename(project.folder / WORK_NAME / "plan")
    events = list(run_all(project, only=["plan"]))
    assert not made(events)
    assert verify_stage(project, stage).state == "whole"
    # the old one, exchanged for the new one and not yet removed
    shutil.copytree((project.folder / "plan"), (project.folder / WORK_NAME / "plan"))
    manifest = json.loads((project.folder / WORK_NAME / "plan" / "stage.json").read_text())
    (project.folder / WORK_NAME / "plan" / "stage.json").write_text(
        json.dumps({**manifest, "inputs_digest": "of before"})
    )
    (project.folder / WORK_NAME / "plan" / "mine.txt").write_text("mine")
    assert not made(list(run_all(project, only=["plan"])))
    assert (project.folder / "plan" / "mine.txt").read_text() == "mine"
    assert not (project.folder / WORK_NAME / "plan").exists()
    assert digests(project) == before


def test_a_draft_that_was_swapped_while_the_stage_was_interrupted_is_drawn_again(project: Run) -> None:
    before = digests(project)
    shutil.rmtree(project.folder / "drafts")
    events = run_all(project, only=["synthesize"])
    assert any(isinstance(event, Progress) for event in events)
    events.close()  # type: ignore[attr-defined]
    drawn = sorted((project.folder / WORK_NAME / "drafts" / "images").glob("*.png"))
    assert len(drawn) == 3
    shutil.copyfile(drawn[0], drawn[1])
    list(run_all(project, only=["synthesize"]))
    assert digests(project) == before


def test_cached_latents_and_class_images_are_checked_when_they_are_read(project: Run) -> None:
    before = digests(project)
    for kind in ("latents", "class_images"):
        files = sorted((project.folder / "cache" / kind).rglob("*.safetensors"))
        assert files
        flip(files[0])
        if len(files) > 2:
            shutil.copyfile(files[2], files[1])
    (project.folder / "cache" / "class_images" / ("0" * 64 + ".safetensors")).write_bytes(b"of other settings")
    shutil.rmtree(project.folder / "concept")
    shutil.rmtree(project.folder / "control")
    list(run_all(project, only=["learn-concept", "learn-condition"]))
    assert digests(project) == before


def test_curation_reads_the_class_images_of_the_concept_and_no_others(project: Run) -> None:
    latents = load_file(project.folder / "concept" / "class_images.safetensors")["latents"]
    images = prior_images(project.store().concept, base=project.config.base)
    shutil.rmtree(project.folder / "cache")
    again = prior_images(project.store().concept, base=project.config.base)
    assert len(images) == len(again) == len(latents) == 2
    assert all((one == other).all() for one, other in zip(images, again, strict=True))
    assert "learn-concept" in stage_named(project, "curate").inputs(project.config)


def test_the_source_is_what_the_import_reads(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in (
        "annotations.json",
        "project.toml",
        "notes.json",
        "images/a.png",
        "images/b.JPG",
        "images/.DS_Store",
        "images/._a.png",
    ):
        (tmp_path / name).write_text("x")
    claim_folder(tmp_path / "run", kind="run")
    (tmp_path / "run" / "contact.png").write_text("x")
    listed = source_listing(tmp_path / "annotations.json")
    assert [row[0] for row in listed] == ["annotations.json", "images/a.png", "images/b.JPG"]  # type: ignore[union-attr]
    (tmp_path / "run" / "more.png").write_text("x")
    (tmp_path / "project.toml").write_text("changed")
    assert source_listing(tmp_path / "annotations.json") == listed
    (tmp_path / "images" / "a.png").write_text("changed")
    assert source_listing(tmp_path / "annotations.json") != listed
    assert [row[0] for row in source_listing(tmp_path)] == [
        "annotations.json",
        "images/a.png",
        "images/b.JPG",
        "notes.json",
    ]  # type: ignore[union-attr]
    (tmp_path / "nothing").mkdir()
    for gone in ("nothing", "gone", "gone.json"):
        assert isinstance(source_listing(tmp_path / gone), MissingSource)


def test_two_processes_on_one_run_are_told_apart(project: Run) -> None:
    code = f"""
import sys
from pathlib import Path
from defectory.lock import run_lock
with run_lock(Path({str(project.folder)!r})):
    print("held", flush=True)
    sys.stdin.readline()
"""
    other = subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(StageError, match=rf"another process is writing to this run \(process {other.pid} on "):
        list(run_all(project))
    other.communicate("\n")
    assert not made(list(run_all(project)))


def test_a_stage_folder_with_an_unreadable_marker_and_damage_is_set_aside_not_removed(project: Run) -> None:
    before = digests(project)
    (project.folder / "plan" / MARKER_NAME).write_text("")
    (project.folder / "plan" / "plan.json").write_text("{}")
    (project.folder / "plan" / "mine.txt").write_text("mine")
    assert "plan" in made(list(run_all(project)))
    assert digests(project) == before
    assert (project.folder / "plan.damaged" / "mine.txt").read_text() == "mine"
    assert is_ours((project.folder / "plan"), kind="stage")
    assert (
        digest_file(project.folder / "plan" / "plan.json")
        == read_manifest(project.folder / "plan")["files"]["plan.json"]
    )  # type: ignore[index]


def test_the_verb_tells_what_is_damaged_and_what_to_do(
    project: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.sources.folder)
    monkeypatch.setenv("COLUMNS", "300")  # a narrow table folds its cells
    Path("project.toml").write_text(project_template(tiny_run[1]))

    def verify(*options: str) -> tuple[int, str]:
        code = app(["verify", *options], standalone_mode=False)
        return int(code or 0), capsys.readouterr().out

    before = sorted(path for path in project.folder.rglob("*"))
    code, told = verify()
    assert code == 0
    assert f"{len(stages_of(project.config))} whole, 0 not run or not finished" in told
    flip(project.folder / "plan" / "plan.json")
    (project.folder / "plan" / "bank.json").unlink()
    (project.folder / "tiles" / "mine.txt").write_text("mine")
    code, told = verify()
    assert code == 1
    assert "bank.json is missing, plan.json is changed or damaged" in " ".join(told.split())
    assert "1 of others" in told
    assert "1 damaged; `defectory run project.toml` makes them anew" in told
    code, told = verify("--json")
    rows = {row["stage"]: row for row in map(json.loads, told.splitlines())}
    assert code == 1
    assert (rows["plan"]["state"], rows["plan"]["missing"], rows["plan"]["changed"]) == (
        "damaged",
        ["bank.json"],
        ["plan.json"],
    )
    assert rows["tiles"]["extra"] == ["mine.txt"]
    changed = {(project.folder / "plan" / "bank.json"), (project.folder / "tiles" / "mine.txt")}
    assert set(before) ^ set(project.folder.rglob("*")) == changed
