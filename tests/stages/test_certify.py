"""The split certificate of a finished run, and what it names if an image of test was planted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defectory.artifacts.certificate import Certificate
from defectory.cli.main import app
from defectory.config.template import project_template
from defectory.events import StageEnded, finish
from defectory.files import digest_file, digest_json
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.stages.all import run_all
from defectory.stages.certify import certificate_of
from defectory.stages.parts.certificate_check import check_certificate

Open = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture
def project(tiny_run: TinyRun, tmp_path: Path, open_tiny: Open) -> Run:
    """A copy of the finished run."""
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    return open_tiny(tmp_path / "copy", settings)


def edit(project: Run, stage_folder: str, name: str, change: Callable[[Any], None], *, seal: bool = True) -> None:
    """Change a JSON file of a finished stage; if sealed, its manifest too, so that no digest tells."""
    path, manifest = project.folder / stage_folder / name, project.folder / stage_folder / "stage.json"
    lines = name.endswith("jsonl")
    content = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    change(content)
    path.write_text("".join(json.dumps(of) + "\n" for of in content) if lines else json.dumps(content))
    if seal:
        about = json.loads(manifest.read_text())
        about["files"][name] = digest_file(path)
        about["info"]["output_digest"] = digest_json(about["files"])
        manifest.write_text(json.dumps(about))


def certificate(project: Run) -> Certificate:
    return finish(certificate_of(RunStore(project.folder, sources=project.sources), project.config))


def test_a_finished_run_holds_and_the_check_gives_the_same_seal(project: Run) -> None:
    stored = project.store().certificate
    assert stored.verdict == "holds"
    checked = check_certificate(project)
    assert checked is not None
    assert (checked.broken, checked.seal) == ((), stored.seal)
    images = {use.consumer: use.num_images for use in stored.uses}
    split = project.store().split
    assert images["concept"] > 0
    assert images["prior"] == 0
    assert images["segment-real-seed0"] == len(split.train) + len(split.pool)
    assert 0 < images["segment-real-seed0, selection"] <= len(split.val)
    assert images["tiles of test"] == len(split.test)
    assert {"mask bank", "plan", "mask guidance", "curation", "synthetic set", "control"} <= images.keys()
    assert stored.num_images == sum(map(len, (split.train, split.pool, split.val, split.test)))


def plant_in_record(purpose: str) -> Callable[[Any, int], None]:
    return lambda content, image_id: content["image_ids"][purpose].append(image_id)


@pytest.mark.parametrize(
    ("folder", "name", "plant", "consumer"),
    [
        ("concept", "images_used.json", plant_in_record("prior"), "prior"),
        ("concept", "images_used.json", plant_in_record("training"), "concept"),
        ("control", "images_used.json", plant_in_record("training"), "control"),
        ("calibration", "images_used.json", plant_in_record("reference"), "mask guidance"),
        ("curation", "images_used.json", plant_in_record("reference"), "curation"),
        ("plan", "bank.json", lambda of, i: of["entries"][0].update(image_id=i), "mask bank"),
        ("synthetic", "provenance.jsonl", lambda of, i: of[0]["image_ids"].append(i), "synthetic set"),
        ("segment/real-seed0", "log.json", lambda of, i: of["image_ids"].append(i), "segment-real-seed0"),
        ("segment/real-seed0", "images_used.json", plant_in_record("selection"), "segment-real-seed0, selection"),
        ("segment/real-seed0", "images_used.json", plant_in_record("threshold"), "segment-real-seed0, threshold"),
    ],
)
def test_a_planted_test_image_is_named_with_its_consumer(
    project: Run, folder: str, name: str, plant: Callable[[Any, int], None], consumer: str
) -> None:
    test_image = project.store().split.test[0]
    edit(project, folder, name, lambda content: plant(content, test_image))
    checked = check_certificate(project)
    assert checked is not None
    assert any(line.startswith(f"{consumer}: used image {test_image} (") for line in checked.broken)
    assert all("of test" in line for line in checked.broken)


def test_a_file_that_was_changed_or_does_not_say_its_images_is_named(project: Run) -> None:
    edit(project, "plan", "bank.json", lambda content: content["entries"].pop(), seal=False)
    edit(project, "segment/real-seed0", "log.json", lambda content: content.pop("image_ids"))
    (project.folder / "curation" / "images_used.json").unlink()
    broken = certificate(project).broken
    assert "mask bank: plan/bank.json was changed after its stage wrote it" in broken
    assert "curation: curation/images_used.json is missing" in broken
    unsaid = "segment/real-seed0/log.json cannot be read, or does not say which images were used"
    assert f"segment-real-seed0: {unsaid}" in broken


def test_an_image_file_that_was_changed_is_named(project: Run) -> None:
    data = project.store().data
    record = data.dataset.image(project.store().split.train[0])
    data.path(record).write_bytes(b"another image")
    assert certificate(project).problems == (
        f"missing or changed since the import: image {record.id} ({record.file_name})",
    )


def test_other_files_than_those_sealed_break_the_certificate(project: Run) -> None:
    edit(project, "plan", "bank.json", lambda content: content["entries"].reverse())
    checked = check_certificate(project)
    assert checked is not None
    assert "have other digests than when it was sealed" in checked.broken[0]


def test_verify_says_whether_the_certificate_holds(
    project: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder.parent)
    Path("project.toml").write_text(project_template(tiny_run[1]))
    whole = CliRunner().invoke(app, ["verify"])
    assert whole.exit_code == 0
    assert "split certificate holds" in whole.output
    test_image = project.store().split.test[0]
    edit(project, "plan", "bank.json", lambda content: content["entries"][0].update(image_id=test_image))
    broken = CliRunner().invoke(app, ["verify"])
    assert broken.exit_code == 2
    assert f"split certificate broken: mask bank: used image {test_image}" in " ".join(broken.output.split())


def test_the_report_shows_the_certificate(project: Run) -> None:
    page = (project.folder / "report.html").read_text(encoding="utf-8")
    assert "Split certificate: the split holds" in page
    assert project.store().certificate.seal in page


@pytest.mark.long
def test_folds_and_a_mask_model_are_consumers_too(project: Run, tiny_run: TinyRun, open_tiny: Open) -> None:
    more = ("synthesis.focus=segmenter", "segmentation.fold_steps=2", "masks.sources.diffusion=0.5")
    arms = ('segmentation.arms=["real","synthetic"]', "masks.diffusion.num_steps=3", "synthesis.num_images=4")
    again = open_tiny(project.folder.parent, tiny_run[1], *more, *arms)
    for _ in run_all(again):
        pass
    found = again.store().certificate
    images = {use.consumer: use.num_images for use in found.uses}
    assert found.verdict == "holds"
    assert images["fold segmenters"] > 0
    assert images["mask model"] == images["mask bank"]
    test_image = again.store().split.test[0]
    edit(again, "folds", "fold-0/log.json", lambda content: content["image_ids"].append(test_image))
    edit(again, "mask_model", "images_used.json", lambda content: content["image_ids"]["training"].append(test_image))
    broken = certificate(again).broken
    assert [line.split(": used image")[0] for line in broken] == ["fold segmenters", "mask model"]
