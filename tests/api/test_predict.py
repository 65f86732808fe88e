from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from defectory import Project, predict
from defectory.errors import ImageError
from defectory.images.save import save_png


def test_a_folder_and_a_single_file_are_predicted(project: Project, tmp_path: Path) -> None:
    segmenter = project.folder_of("segment-real-seed0")
    for name in ("a", "b"):
        save_png(tmp_path / "photos" / f"{name}.png", np.full((40, 56, 3), 120, np.uint8))
    assert predict(tmp_path / "photos" / "a.png", segmenter=segmenter, out=tmp_path / "one").num_images == 1
    found = predict([tmp_path / "photos"], segmenter=segmenter, out=tmp_path / "both")
    assert (found.num_images, found.skipped) == (2, ())
    images = json.loads((tmp_path / "both" / "images.json").read_text())["images"]
    assert [(image["height"], image["width"]) for image in images] == [(40, 56)] * 2


def test_a_bad_image_is_refused_or_left_out(project: Project, tmp_path: Path) -> None:
    segmenter = project.folder_of("segment-real-seed0")
    save_png(tmp_path / "a.png", np.full((40, 56, 3), 120, np.uint8))
    (tmp_path / "b.png").write_bytes(b"not an image")
    images = [tmp_path / "a.png", str(tmp_path / "b.png")]
    with pytest.raises(ImageError, match=r"b\.png"):
        predict(images, segmenter=segmenter, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = predict(images, segmenter=segmenter, out=tmp_path / "out", skip_bad=True)
    assert found.num_images == 1
    assert "b.png" in found.skipped[0]
