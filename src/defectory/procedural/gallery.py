"""Contact sheets of the procedural world: every material, part, light and defect, a few times each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from defectory.drawing import contact_sheet, draw_outlines
from defectory.procedural.borescope import render as render_borescope
from defectory.procedural.camera import LIGHTS
from defectory.procedural.defects import DEFECT_WORDS
from defectory.procedural.materials import MATERIALS
from defectory.procedural.parts import PARTS
from defectory.procedural.world import Sample, render

Image = NDArray[np.uint8]
FIRST_SEED = 7_000_000
MAX_SEEDS = 20_000
OUTLINE_RGB = (255, 60, 60)


def _shows_light(sample: Sample, word: str) -> bool:
    return f", {word}," in sample.caption


SHEETS: dict[str, tuple[tuple[str, ...], Callable[[Sample, str], bool], bool]] = {
    "materials": (
        tuple(MATERIALS),
        lambda sample, word: sample.material == word and sample.part == "plain surface" and not sample.instances,
        False,
    ),
    "parts": (tuple(PARTS), lambda sample, word: sample.part == word and not sample.instances, False),
    "lights": (LIGHTS, lambda sample, word: _shows_light(sample, word) and sample.part == "plain surface", False),
    "defects": (DEFECT_WORDS, lambda sample, word: set(sample.defect_words) == {word}, True),
}
"""For each sheet: its words, a test whether a sample shows a word, and whether masks are outlined."""


def world_sheet(name: str, *, per_word: int = 6, cell_px: int = 112) -> Image:
    """Draw one of SHEETS with one row per word, RGB uint8 [H,W,3]; a pure function of its arguments.

    Args:
        name: key of SHEETS.
        per_word: images in a row.
        cell_px: side of an image on the sheet.
    """
    words, shows, outlined = SHEETS[name]
    rows: dict[str, list[Image]] = {word: [] for word in words}
    for seed in range(FIRST_SEED, FIRST_SEED + MAX_SEEDS):
        if all(len(row) == per_word for row in rows.values()):
            break
        sample = render(seed)
        for word, row in rows.items():
            if len(row) < per_word and shows(sample, word):
                marked = draw_outlines(sample.image, [(OUTLINE_RGB, mask) for _, mask in sample.instances], zoom=2)
                row.append(marked if outlined and len(row) % 2 else sample.image)
    cells = [image for row in rows.values() for image in row]
    labels = [word if number == 0 else "" for word, row in rows.items() for number in range(len(row))]
    return contact_sheet(cells, columns=per_word, labels=labels, cell_px=cell_px)


def borescope_sheet(*, columns: int = 6, rows: int = 3, cell_px: int = 160) -> Image:
    """Draw scenes of the borescope demo, which is in no pretraining, each without and with its masks outlined."""
    cells: list[Image] = []
    for scene in range(columns * rows // 2):
        sample = render_borescope(scene, scene_seed=scene, defects=True)
        cells += [
            sample.image,
            draw_outlines(sample.image, [(OUTLINE_RGB, mask) for _, mask in sample.instances], zoom=2),
        ]
    return contact_sheet(cells, columns=columns, cell_px=cell_px)
