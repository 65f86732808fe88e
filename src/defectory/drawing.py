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
        scale = cell_px / max(cell.shape[:2])
        size = (max(1, round(cell.shape[1] * scale)), max(1, round(cell.shape[0] * scale)))
        fitted = cv2.resize(cell, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
        sheet[top : top + size[1], left : left + size[0]] = fitted
        if labels:
            cv2.putText(sheet, labels[index][:28], (left, top + cell_px + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet
