from __future__ import annotations

import numpy as np
import pytest

from defectory.procedural.gallery import SHEETS, borescope_sheet, world_sheet


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_shows_every_word_of_the_world(name: str) -> None:
    words, _, _ = SHEETS[name]
    sheet = world_sheet(name, per_word=1, cell_px=32)
    row_px = 32 + 16 + 4
    assert sheet.shape == (len(words) * row_px + 4, 32 + 8, 3)
    cells = [sheet[4 + row * row_px : 36 + row * row_px, 4:36] for row in range(len(words))]
    assert all(cell.std() > 0.5 and (cell < 255).any() for cell in cells)
    assert len({cell.tobytes() for cell in cells}) > 0.6 * len(words)


def test_the_borescope_is_shown_without_and_with_its_masks() -> None:
    sheet = borescope_sheet(columns=4, rows=1, cell_px=160)
    first, second = sheet[4:136, 4:164].astype(int), sheet[4:136, 168:328].astype(int)
    changed = np.abs(first - second).max(axis=2) > 60
    assert 0 < changed.mean() < 0.2
