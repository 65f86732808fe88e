"""Outlines and contact sheets. Does not depend on any stage."""

from __future__ import annotations

import unicodedata
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
        zoom: factor to enlarge by first, so that thin defects stay visible under their outline.

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
    """Return the height and width in pixels at which an image fits a square cell; the aspect ratio is kept."""
    scale = cell_px / max(size_hw)
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def write_text(image: Image, text: str, left_bottom: tuple[int, int], *, size: float, colour: Colour) -> None:
    """Write one line of text into an image, using the letters the font has.

    Accents are dropped, and other letters become `?`.

    Args:
        image: RGB uint8, changed in place.
        text: one line.
        left_bottom: lower left corner of the text, pixels.
        size: relative to the font's own size.
        colour: RGB.
    """
    plain = "".join(
        letter for letter in unicodedata.normalize("NFKD", text.replace("ß", "ss")) if not unicodedata.combining(letter)
    )
    # the font would draw several marks for any other letter
    shown = "".join(letter if letter.isprintable() else "?" for letter in plain).encode("ascii", "replace").decode()
    cv2.putText(image, shown, left_bottom, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def contact_sheet(
    cells: Sequence[Image], *, columns: int, labels: Sequence[str] | None = None, gap_px: int = 4, cell_px: int = 160
) -> Image:
    """Arrange images in a grid on white, each scaled into a square cell with an optional label below it.

    Rows of wide images are lower than `cell_px`.

    Args:
        cells: RGB uint8 images of any size.
        columns: images per row.
        labels: one short text per image.
        gap_px: white space between cells.
        cell_px: side of a cell.
    """
    text_px = 16 if labels else 0
    sizes_hw = [fitted_size_hw((cell.shape[0], cell.shape[1]), cell_px) for cell in cells]
    heights = [
        max(size_hw[0] for size_hw in sizes_hw[first : first + columns]) for first in range(0, len(cells), columns)
    ]
    tops = np.cumsum([gap_px, *(height + text_px + gap_px for height in heights)])
    sheet = np.full((int(tops[-1]), columns * (cell_px + gap_px) + gap_px, 3), 255, np.uint8)
    for index, (cell, size_hw) in enumerate(zip(cells, sizes_hw, strict=True)):
        row, column = divmod(index, columns)
        top, left = int(tops[row]), gap_px + column * (cell_px + gap_px)
        shrink = max(cell.shape[:2]) > cell_px
        fitted = cv2.resize(
            cell, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST
        )
        sheet[top : top + size_hw[0], left : left + size_hw[1]] = fitted
        if labels:
            write_text(sheet, labels[index][:28], (left, top + heights[row] + 12), size=0.36, colour=(40, 40, 40))
    return sheet
