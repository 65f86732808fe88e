"""Which segmenter is exported, and that the export is that segmenter."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory import Project, Segmenter, StageEnded
from defectory.cli.main import main
from defectory.config.template import project_template
from defectory.files import write_json
from defectory.runs.store import RunStore
from defectory.stages.parts.best_segmenter import choose_segmenter

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]

VALIDATION = {
    "real": {0: 0.30, 1: 0.34, 2: 0.32},
    "copy_paste": {0: 0.28, 1: 0.29, 2: 0.27},
    "mixed": {0: 0.40, 1: 0.41, 2: 0.43},
}
COMPARED = {"reference": "real", "candidate": "mixed"}


def chosen(outcome: str, validation: dict[str, dict[int, float]] = VALIDATION, **compared: str) -> tuple[str, int]:
    choice = choose_segmenter({"outcome": outcome, **(compared or COMPARED)}, validation)
    assert choice is not None
    return choice.arm, choice.seed


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("use it", ("mixed", 2)),
        ("no worse and no better", ("real", 1)),
        ("do not use it", ("real", 1)),
        ("not enough evidence", ("real", 1)),
    ],
)
def test_synthetic_data_is_used_only_if_the_verdict_says_so(outcome: str, expected: tuple[str, int]) -> None:
    assert chosen(outcome) == expected


def test_without_a_comparison_the_arm_that_is_best_on_validation_is_taken() -> None:
    choice = choose_segmenter({"outcome": "not enough evidence", "reference": None}, VALIDATION)
    assert choice is not None
    assert (choice.arm, choice.seed) == ("mixed", 2)
    assert "compares no arms" in choice.why
    assert chosen("not enough evidence", {"synthetic": {4: 0.1}}, reference="real") == ("synthetic", 4)


def test_of_equal_arms_and_seeds_the_first_is_taken() -> None:
    equal = {arm: {3: 0.2, 1: 0.2} for arm in ("copy_paste", "real", "mixed")}
    assert chosen("not enough evidence", equal, reference="none") == ("copy_paste", 3)
    assert chosen("use it", equal) == ("mixed", 3)


def test_an_arm_that_found_nothing_on_validation_gives_way_to_one_that_did() -> None:
    scarce = {"real": {0: 0.0, 1: 0.001}, "copy_paste": {0: 0.01, 1: 0.02}, "mixed": {0: 0.1, 1: 0.2}}
    assert chosen("not enough evidence", scarce) == ("mixed", 1)
    assert chosen("not enough evidence", {arm: {0: 0.0} for arm in scarce}) == ("real", 0)


def test_no_segmenter_is_no_choice() -> None:
    assert choose_segmenter({"outcome": "not enough evidence"}, {}) is None


@pytest.fixture
def project(tiny_run: TinyRun, tmp_path: Path) -> Project:
    """A copy of the finished run."""
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    file = tmp_path / "copy" / "project.toml"
    file.write_text(project_template(tiny_run[1]))
    return Project.open(file)


@pytest.fixture
def chosen_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """A function that runs the stage again with other scores: a verdict, and changes to the figures of `real`."""

    def run(*, segm_map: float = 0.3, plant: dict[str, Any] | None = None, **verdict: object) -> Project:
        scores = copy.deepcopy(project.scores)
        scores["verdict"] = {"sentence": "As planted.", **verdict}
        for own in scores["arms"]["real"]["per_seed"]:
            own["segm_map"] = segm_map
            own["plant"].update(plant or {})
        monkeypatch.setattr(RunStore, "scores", scores)
        again = Project.open(project.file, overrides={"name": "again"})
        again.run(only="best-segmenter")
        return again

    return run


def test_the_export_predicts_what_the_trained_segmenter_does(chosen_again: Callable[..., Project]) -> None:
    project = chosen_again(outcome="do not use it", reference="real")
    trained = Segmenter.load(project.folder_of("segment-real-seed0"))
    exported = Segmenter.load(project.best_segmenter)
    records = [project.dataset.image(image_id) for image_id in project.split.test]
    images = [project.store.data.path(record) for record in records]
    expected, found = ([d for image in images for d in of.predict(image, min_score=0.0)] for of in (trained, exported))
    assert [(d.class_name, d.score, d.box_xyxy) for d in found] == [
        (d.class_name, d.score, d.box_xyxy) for d in expected
    ]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(found, expected, strict=True))
    assert len(expected) > 0
    assert exported.score_threshold == trained.score_threshold


def test_the_seed_that_is_better_on_validation_is_taken_though_test_says_otherwise(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second seed of `real` is planted: worse on test, better on validation."""
    scores = copy.deepcopy(project.scores)
    first = scores["arms"]["real"]["per_seed"][0]
    scores["arms"]["real"]["per_seed"] = [first | {"segm_map": 0.9}, first | {"segm_map": 0.2}]
    scores["verdict"] = {"outcome": "do not use it", "sentence": "As planted.", "reference": "real"}
    log = json.loads((project.folder_of("segment-real-seed0") / "log.json").read_text())
    shutil.copytree(project.folder_of("segment-real-seed0"), project.run_folder / "segment" / "real-seed1")
    of = RunStore.segmenter

    def segmenter(store: RunStore, arm: str, seed: int) -> Any:
        found = of(store, arm, seed) if seed == 0 else of(store, arm, 0)
        folder = store.folder / "segment" / f"real-seed{seed}" if arm == "real" else found.folder
        return type(found)(folder=folder, log=log | {"best_val_score": 0.1 + seed / 10}, skipped=None)

    monkeypatch.setattr(RunStore, "scores", scores)
    monkeypatch.setattr(RunStore, "segmenter", segmenter)
    from defectory.stages.best_segmenter import BestSegmenter

    config = Project.open(project.file, overrides={"segmentation.seeds": [0, 1], "segmentation.arms": ["real"]}).config
    out = project.run_folder.parent / "out"
    list(BestSegmenter().run(project.store, config, out))
    card = json.loads((out / "card.json").read_text())
    assert (card["seed"], card["scores"]["segm_map"]) == (1, 0.2)


def test_card_and_readme_say_what_it_finds_and_how_to_use_it(chosen_again: Callable[..., Project]) -> None:
    plant = {
        "missed_defect_rate": 0.25,
        "num_defects": 8,
        "num_good_images": 50,
        "false_alarms_per_100_good_images": 6.0,
    }
    project = chosen_again(outcome="do not use it", reference="real", candidate="synthetic", plant=plant)
    card = project.segmenter_card
    assert card is not None
    assert (card.arm, card.words) == ("real", "real, found 6 of 8 defects, false alarms on 3 of 50 good images")
    assert [of.source for of in card.trained_on] == ["defect_free", "real"]
    readme = (project.best_segmenter / "README.md").read_text()
    for words in (
        "Found 6 of 8 defects, false alarms on 3 of 50 good images",
        "chosen on validation images",
        "do not use it",
        "As planted.",
        "defectory predict IMAGES --segmenter best_segmenter",
        "Apache-2.0",
    ):
        assert words in readme
    assert "More labels are there" not in readme
    assert "Synthetic images were drawn" not in readme
    assert str(project.run_folder) not in readme


def test_a_segmenter_that_finds_nothing_is_exported_and_called_so(chosen_again: Callable[..., Project]) -> None:
    project = chosen_again(outcome="do not use it", reference="real", segm_map=0.004)
    card = project.segmenter_card
    assert card is not None
    assert card.words == "real, finds nothing: segm mAP 0.004 on test"
    assert "**It finds nothing" in (project.best_segmenter / "README.md").read_text()
    assert Segmenter.load(project.best_segmenter).categories


def test_without_any_segmenter_the_folder_says_why(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("real", "synthetic", "synthetic_then_real"):
        folder = project.folder_of(f"segment-{name}-seed0")
        write_json(folder / "skipped.json", {"reason": "curation accepted no draft"})
    from defectory.stages.best_segmenter import BestSegmenter

    monkeypatch.setattr(RunStore, "checked", lambda store, folder, name: store.path(folder, name))
    out = project.run_folder.parent / "out"
    list(BestSegmenter().run(project.store, project.config, out))
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert "curation accepted no draft" in (out / "README.md").read_text()
    shutil.rmtree(project.best_segmenter)
    out.rename(project.best_segmenter)
    assert project.segmenter_card is None


def test_a_part_of_the_labels_is_named(chosen_again: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    of = RunStore.split.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(RunStore, "split", property(lambda store: of(store).model_copy(update={"fraction": 0.5})))
    project = chosen_again(outcome="do not use it", reference="real")
    readme = (project.best_segmenter / "README.md").read_text()
    assert "50% of those that it may use. More labels are there" in readme


def test_the_run_ends_with_the_segmenter_and_predict_takes_it_by_default(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["defectory", *arguments])
        main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(project.file.parent)
    card = project.segmenter_card
    assert card is not None
    (line,) = [line for line in run("run", "--yes") if line.startswith("best segmenter: ")]
    assert line == f"best segmenter: {project.best_segmenter} ({card.words})"

    image = str(project.store.data.path(project.dataset.image(project.split.test[0])))
    run("predict", image, "--out", "given", "--segmenter", str(project.best_segmenter))
    run("predict", image, "--out", "default")
    monkeypatch.chdir(project.file.parent.parent)
    run("predict", image, "--out", "named", "-m", f"copy/{project.file.name}")
    found = [Path(folder, "predictions.json").read_bytes() for folder in ("copy/given", "copy/default", "named")]
    assert found[0] == found[1] == found[2]


def test_predict_without_segmenter_and_project_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["defectory", "predict", "image.png"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "project.toml: no such file; name a segmenter's folder" in capsys.readouterr().err
