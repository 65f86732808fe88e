from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from defectory import Project, Segmenter, export_onnx, finish
from defectory.errors import ConfigError, OutputError
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.segmentation import to_onnx

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


def test_a_segmenter_is_written_and_used_as_the_guide_says(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    finish(export_onnx(project, "real-seed0", out=tmp_path / "onnx"))
    about = json.loads((tmp_path / "onnx" / "segmenter.json").read_text())
    assert [of["name"] for of in about["classes"]] == [c.name for c in project.dataset.categories]
    assert about["checked"]["num_images"] >= 2
    record = project.dataset.image(project.split.val[0])
    photo = load_rgb(project.store.data.path(record))
    save_png(tmp_path / "photo.png", photo)
    # a segmenter of a few steps finds nothing that it is sure of
    own_file = (tmp_path / "onnx" / "segmenter.json").read_text()
    (tmp_path / "onnx" / "segmenter.json").write_text(json.dumps({**about, "score_threshold": 0.06}))
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(block, "export.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    own = Segmenter.load(project.folder_of("segment-real-seed0")).predict(photo, min_score=0.06)
    assert len(printed) >= len(own)
    assert {line.split()[0] for line in printed} >= {found.class_name for found in own}
    with pytest.raises(OutputError, match=r"segmenter\.json was changed since"):
        export_onnx(project, "real-seed0", out=tmp_path / "onnx")
    (tmp_path / "onnx" / "segmenter.json").write_text(own_file)
    monkeypatch.chdir(tmp_path.parent)
    finish(export_onnx(project, "real-seed0", out=tmp_path / "onnx"))


def test_what_cannot_be_written_is_refused_before_the_work(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"trains no segmenter 'other'; give one of real-seed0"):
        export_onnx(project, "other", out=tmp_path / "out")
    with pytest.raises(OutputError):
        export_onnx(project, "real-seed0", out=project.run_folder)
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the packages onnx and onnxruntime"):
        export_onnx(project, "real-seed0", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
