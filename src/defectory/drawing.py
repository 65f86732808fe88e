"""Outlines and contact sheets. Knows no stage."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]


def draw_outlines(image: Image, masks: Sequence[tuple[Colour, NDArray[np.bool_]]], *, zoom: int = 1) -> Image:
    """Draw the outer border of each mask on a copy of an image.

    Args:
        image: RGB uint8 [H,W,3].
        masks: colour and bool [H,W] mask, in drawing order.
        zoom: enlarge first, so that thin defects stay visible under their outline.

    Returns:
        RGB uint8 [H*zoom,W*zoom,3].
    """
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST) if zoom > 1 else image.copy()
    for colour, mask in masks:
        big = np.kron(mask, np.ones((zoom, zoom), bool)) if zoom > 1 else mask
        grown = cv2.dilate(big.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        canvas[grown & ~big] = colour
    return np.ascontiguousarray(canvas, dtype=np.uint8)


def fitted_size_hw(size_hw: tuple[int, int], cell_px: int) -> tuple[int, int]:
    """Return the height and width at which an image fits a square cell, its aspect kept, pixels."""
    scale = cell_px / max(size_hw)
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def contact_sheet(
    cells: Sequence[Image], *, columns: int, labels: Sequence[str] | None = None, gap_px: int = 4, cell_px: int = 160
) -> Image:
    """Lay images out in a grid on white, each fitted into a square cell, an optional label under it.

    Args:
        cells: RGB uint8 images of any size.
        columns: images per row.
        labels: one short text per image.
        gap_px: white between cells.
        cell_px: side of a cell.
    """
    text_px = 16 if labels else 0
    rows = max(1, -(-len(cells) // columns))
    height, width = rows * (cell_px + text_px + gap_px) + gap_px, columns * (cell_px + gap_px) + gap_px
    sheet = np.full((height, width, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top, left = gap_px + row * (cell_px + text_px + gap_px), gap_px + column * (cell_px + gap_px)
        size_hw = fitted_size_hw((cell.shape[0], cell.shape[1]), cell_px)
        shrink = max(cell.shape[:2]) > cell_px
        fitted = cv2.resize(cell, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST)
        sheet[top : top + size_hw[0], left : left + size_hw[1]] = fitted
        if labels:
            # the font has no other letters, and would draw several marks for one
            label = labels[index][:28].encode("ascii", "replace").decode()
            cv2.putText(sheet, label, (left, top + cell_px + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet
