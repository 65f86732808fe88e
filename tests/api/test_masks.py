from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectory import Project, preview_masks, review_masks
from defectory.api.masks import require_review_folder
from defectory.errors import OutputError


def test_masks_are_previewed_for_every_class_of_train(project: Project) -> None:
    sheet, counts = preview_masks(project, per_class=4, seed=1)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    assert {name: sum(of.values()) for name, of in counts.items()} == dict.fromkeys(counts, 4)
    assert set(counts) <= {category.name for category in project.dataset.categories}
    assert (preview_masks(project, per_class=4, seed=1)[0] == sheet).all()


def test_masks_for_review_are_written_once_and_corrections_are_kept(project: Project, tmp_path: Path) -> None:
    count = review_masks(project, out=tmp_path / "masks")
    assert len(list((tmp_path / "masks").glob("*/*.png"))) == count > 0
    corrected = next((tmp_path / "masks").glob("*/*.png"))
    corrected.write_bytes(b"corrected")
    with pytest.raises(OutputError, match="may hold corrections"):
        review_masks(project, out=tmp_path / "masks")
    assert corrected.read_bytes() == b"corrected"


def test_a_folder_for_review_is_refused_without_a_project(tmp_path: Path) -> None:
    require_review_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError):
        require_review_folder(tmp_path)
