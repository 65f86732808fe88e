"""The report's first screen, on a tiny run."""

from __future__ import annotations

import copy
import html
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from defectory import Project, StageEnded
from defectory.cli.main import main
from defectory.config.template import project_template
from defectory.drivers.leakage import Leakage
from defectory.runs.store import RunStore
from defectory.stages import report
from defectory.stages.parts.signatures import Memorisation

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
ODD = """it's "a" <b>&$x.toml"""


@pytest.fixture
def file(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """The project file, with an odd name, of a finished run."""
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    file = tmp_path / "copy" / ODD
    file.write_text(project_template(tiny_run[1]))
    return file


def first_screen(project: Project) -> str:
    page = project.report.read_text(encoding="utf-8")
    return page[page.index("<body>") : page.index(">Key facts<")]


def commands(screen: str) -> list[list[str]]:
    return [shlex.split(html.unescape(text)) for text in re.findall(r"<pre><code>(.*?)</code></pre>", screen)]


def plant(monkeypatch: pytest.MonkeyPatch, project: Project, *, auc: float = 0.5, **verdict: object) -> None:
    """Make the next report find another verdict and leakage, and all else in order."""
    scores = copy.deepcopy(project.scores)
    scores["verdict"] = {"metric": "segm_map", **verdict}
    scores["fidelity"].update(accepted_share=0.8, mean=0.6, shuffled=0.02, rejected_by={})
    scores["defect_contrast"] = {"hairline": {"synthetic": 0.5, "real": 0.5, "num_synthetic": 9, "num_real": 9}}
    floors = {f"{name}_wasserstein{end}": 1.0 for name in ("mean", "std") for end in ("", "_floor")}
    near: dict[str, object] = {key: [-0.01, 0.01] for key in ("kid_interval", "kid_floor_interval")}
    scores["image_sets"] |= floors | near | {"kid": 0.0, "kid_floor": 0.0}
    for arm in scores["arms"].values():
        arm["segm_map"] = 0.3
    leak = Leakage(auc=auc, interval=(auc - 0.1, auc + 0.1), num_defective=40, num_defect_free=40)
    monkeypatch.setattr(RunStore, "scores", scores)
    monkeypatch.setattr(report, "leakage_of", lambda inputs, config: leak)
    labels = {part: {"hairline": 9, "burn": 7} for part in ("train", "val", "test")}
    copied = Memorisation(draft_to_train=1.0, train_to_train=1.0, copied_share=0.0)
    monkeypatch.setattr(report, "label_counts", lambda dataset, split: labels)
    monkeypatch.setattr(report, "memorisation", lambda inputs: copied)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (
            {"outcome": "not enough evidence", "sentence": "One seed.", "gain": 0.1},
            [["run", ODD, "-o", "segmentation.seeds=[0,1,2]"]],
        ),
        (
            {"outcome": "use it", "sentence": "It helps.", "gain": 0.1},
            [["export", ODD, "--format", "coco", "--out", "synthetic-coco"]],
        ),
        ({"outcome": "do not use it", "sentence": "It does not.", "gain": -0.1}, [["run", ODD]]),
    ],
)
def test_the_first_screen_holds_the_command_for_the_verdict(
    file: Path, monkeypatch: pytest.MonkeyPatch, verdict: dict[str, object], expected: list[list[str]]
) -> None:
    project = Project.open(file)
    plant(monkeypatch, project, **verdict)
    project.run(only="report")
    screen = first_screen(project)
    assert commands(screen) == [["defectory", *words] for words in expected]
    assert "<b>&$x" not in screen
    if verdict["outcome"] != "do not use it":
        assert "None found" in screen
    summary = json.loads((project.folder_of("report") / "summary.json").read_text())
    assert [shlex.split(step["command"])[1:] for step in summary["next"]] == expected
    for step in summary["next"]:
        Project.open(file, overrides=step["settings"])


def test_leaking_drivers_are_a_red_flag_on_the_first_screen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.open(file)
    plant(monkeypatch, project, auc=0.89, outcome="do not use it", sentence="It does not.", gain=-0.1)
    project.run(only="report")
    screen = first_screen(project)
    assert commands(screen)[0] == ["defectory", "drivers", "tune", ODD]
    assert 'href="#driver-leakage"' in screen
    assert "AUC 0.89, limit 0.65" in screen
    summary = json.loads((project.folder_of("report") / "summary.json").read_text())
    assert {"name": "driver leakage", "detected": True, "figure": "AUC 0.89, limit 0.65"} in summary["red_flags"]
    assert [flag["name"] for flag in summary["red_flags"]] == ["no downstream gain", "driver leakage"]


def test_the_run_prints_the_next_command_for_the_current_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, Project.open(file), outcome="not enough evidence", sentence="One seed.", gain=0.1)
    monkeypatch.chdir(file.parent.parent)
    place = f"copy/{ODD}"
    monkeypatch.setattr(sys, "argv", ["defectory", "run", place, "--only", "report", "-o", "device=cpu", "--yes"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "next: Train with 3 seeds"
    expected = ["defectory", "run", place, "-o", "device=cpu", "-o", "segmentation.seeds=[0,1,2]"]
    assert shlex.split(lines[-1]) == expected
    (step,) = Project.open(Path(place), overrides=["device=cpu"]).next_steps
    assert shlex.split(step.command) == expected


def test_the_report_is_made_again_if_its_commands_change(file: Path) -> None:
    project = Project.open(file)
    assert [name for name, state in project.states().items() if state.state != "up to date"] == ["report"]
    project.run()
    assert project.states()["report"].state == "up to date"
    given = Project.open(file, overrides=["seed=0"])
    assert [name for name, state in given.states().items() if state.state != "up to date"] == ["report"]
    elsewhere = Project.open(file, overrides=["threads=1"])
    assert elsewhere.states()["report"].state == "up to date"
