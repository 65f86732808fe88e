"""Chooses where a defect lies on a frame, and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job, MaskOrigin, Plan
from defectory.artifacts.tiles import Tiling
from defectory.errors import ConfigError
from defectory.geometry import resize_image
from defectory.masks.placement import Sides, Site, site_of, site_of_square
from defectory.rle import encode
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.stages.learn_condition import driver_digest
from defectory.stages.parts.drawing_mode import SQUARE_EXTRA_PX, longest_whole_px, square_margin_px
from defectory.stages.parts.drawings import on_tile
from defectory.stages.parts.mask_supply import mask_supply
from defectory.stages.parts.prompts import prompt_of
from defectory.stages.parts.regions import region_window
from defectory.tones import tone_words
from defectory.tools.insertion.targets import Target

TRIES = 40
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A tile of the frame: RGB uint8 [tile_px,tile_px,3], its image part, and the frame's window it shows."""

    tile: Image
    valid_hw: tuple[int, int]
    corner_yx: tuple[int, int]
    size_hw: tuple[int, int]
    drawing: Image | None = None

    @property
    def geometry(self) -> Image:
        """Return what drivers take their geometry from, RGB uint8 [tile_px,tile_px,3]."""
        return self.tile if self.drawing is None else self.drawing


def window_at(image: Image, tiling: Tiling, corner_yx: tuple[int, int]) -> Window:
    """Cut the tile at an upper left corner, pixels, out of a frame; in frame mode, take the whole frame."""
    from defectory.dataset.tiles import cut_window, frame_image

    if tiling.mode == "frame":
        tile, valid_hw = frame_image(image, tiling)
        return Window(tile=tile, valid_hw=valid_hw, corner_yx=(0, 0), size_hw=(image.shape[0], image.shape[1]))
    side, (top, left) = round(tiling.tile_px / tiling.scale), corner_yx
    native = image[top : top + side, left : left + side]
    size_hw = (native.shape[0], native.shape[1])
    scaled_hw = tuple(min(tiling.tile_px, max(1, round(length * tiling.scale))) for length in size_hw)
    tile, valid_hw = cut_window(resize_image(native, (scaled_hw[0], scaled_hw[1])), (0, 0), tiling.tile_px)
    return Window(tile=tile, valid_hw=valid_hw, corner_yx=(top, left), size_hw=size_hw)


def _window_anywhere(image: Image, tiling: Tiling, rng: np.random.Generator) -> Window:
    side = round(tiling.tile_px / tiling.scale)
    if tiling.mode == "frame":
        return window_at(image, tiling, (0, 0))
    top, left = (int(rng.integers(0, max(0, length - side) + 1)) for length in image.shape[:2])
    return window_at(image, tiling, (top, left))


def plan_of(
    run: Run, inputs: RunStore, targets: Sequence[Target], *, count: int, class_name: str | None, seed: int
) -> tuple[Plan, dict[str, Window]]:
    """Return what is to be drawn, `count` jobs for each target in order, and the window of each job by its id.

    Raises:
        ConfigError: no place for a defect, or a mask without a class of the project's.
    """
    tileset, concept, control = inputs.tiles.tileset, inputs.concept.concept, inputs.control.control
    noun = run.config.prompts.defect_noun
    placer = Placer(inputs, run, class_name)
    jobs: list[Job] = []
    windows: dict[str, Window] = {}
    for number, target in enumerate(target for target in targets for _ in range(count)):
        rng = np.random.default_rng([71, seed, number])
        window, instances, sources = placer.place(target, rng)
        (height, width), tone = window.valid_hw, ""
        if concept.tone_words:
            covered = np.any([mask for _, mask in instances], axis=0)
            tone = tone_words(window.tile[:height, :width], without=covered[:height, :width])
        names = tuple(tileset.categories[category_id - 1].name for category_id, _ in instances)
        job = Job(
            id=f"{number:06d}",
            tile_id=target.file.stem,
            augmentation_seed=None,
            instances=tuple(Instance(category_id=category_id, rle=encode(mask)) for category_id, mask in instances),
            mask_sources=sources,
            prompt=prompt_of(concept, names, tone, defect_noun=noun),
            prompt_without=prompt_of(concept, (), tone, defect_noun=noun),
            seed=int(rng.integers(2**31)),
        )
        jobs.append(job)
        drawing = target.drawing
        windows[job.id] = window if drawing is None else replace(window, drawing=_shown(drawing, window))
    plan = Plan(
        concept_digest=concept.weights_digest,
        control_digest=control.weights_digest,
        driver_config_digest=driver_digest(run.config, len(tileset.categories)),
        categories=tileset.categories,
        jobs=tuple(jobs),
    )
    return plan, windows


Placed = tuple["Window", tuple[tuple[int, Mask], ...], tuple[MaskOrigin, ...]]


class Placer:
    """Chooses where a defect lies on a frame, and its mask."""

    def __init__(self, inputs: RunStore, run: Run, class_name: str | None) -> None:
        tileset = inputs.tiles.tileset
        self._tiling, self._margin_px = tileset.tiling, square_margin_px(run.config.synthesis)
        # a frame of the user's may be larger than a tile, whatever the run draws
        whole_px = longest_whole_px(run.config.synthesis, self._tiling) if self._tiling.mode == "tile" else None
        self._supply = mask_supply(inputs, run.config, whole_px=whole_px)
        self._ids = {c.name: c.id for c in tileset.categories}
        self._class_name = class_name
        self._frequent = [i.category_id for tile in tileset.of("train") for i in tile.instances if not i.is_crowd]

    def place(self, target: Target, rng: np.random.Generator) -> Placed:
        """Return the window, the instances and the origins of their masks."""
        if target.mask is not None:
            return self._by_mask(target, target.mask)
        for _ in range(TRIES):
            window = _window_anywhere(target.image, self._tiling, rng)
            site = self._site_of(window, (target.image.shape[0], target.image.shape[1]))
            if target.region is not None:
                shown = region_window(
                    target.region,
                    corner_yx=window.corner_yx,
                    size_hw=window.size_hw,
                    valid_hw=window.valid_hw,
                    tile_px=self._tiling.tile_px,
                )
                site = site.limited_to(shown)
            if self._class_name is not None:
                category_id = self._ids[self._class_name]
            else:
                category_id = self._frequent[int(rng.integers(len(self._frequent)))]
            drawn = self._supply.sources.draw(category_id, rng)
            if drawn is None:
                continue
            mask = self._supply.place(drawn[0], category_id, site, np.zeros_like(site.allowed), rng)
            if mask is not None and mask.any():
                return window, ((category_id, mask),), (drawn[1],)
        raise ConfigError(
            target.file, f"no place for a defect in {TRIES} tries", "allow a larger region, or another class"
        )

    def _site_of(self, window: Window, size_hw: tuple[int, int]) -> Site:
        """Return a window of a frame as a place for a whole defect, clear of the sides where the frame continues."""
        if self._tiling.mode == "frame":
            return site_of(window.tile, window.valid_hw)
        (top, left), (height, width) = window.corner_yx, window.size_hw
        ends = Sides(top=top <= 0, left=left <= 0, bottom=top + height >= size_hw[0], right=left + width >= size_hw[1])
        return site_of_square(window.tile, window.valid_hw, ends=ends, margin_px=self._margin_px)

    def _by_mask(self, target: Target, values: NDArray[np.int32]) -> Placed:
        """Return the window around a user's mask, and the part of the mask inside it."""
        rows, columns = (np.flatnonzero(values.any(axis=axis)) for axis in (1, 0))
        side = round(self._tiling.tile_px / self._tiling.scale)
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        # both sides of a mask need room, except along a side on which the tile shows the whole frame
        room = side - 2 * ceil((self._margin_px - SQUARE_EXTRA_PX) / self._tiling.scale)
        too_long = any(
            length > (side if whole <= side else room)
            for length, whole in zip((height, width), values.shape, strict=True)
        )
        if self._tiling.mode == "tile" and too_long:
            raise ConfigError(
                target.file,
                f"its mask is {height}x{width} px, a tile shows {room} px and a margin around them",
                "give a smaller mask",
            )
        corner = [
            int(np.clip((first + last + 1 - side) // 2, 0, max(0, length - side)))
            for first, last, length in (
                (rows[0], rows[-1], values.shape[0]),
                (columns[0], columns[-1], values.shape[1]),
            )
        ]
        window = window_at(target.image, self._tiling, (corner[0], corner[1]))
        instances: list[tuple[int, Mask]] = []
        for value in np.unique(values[values > 0]).tolist():
            category_id = self._class_of(int(value), single=int(values.max()) == 1)
            shown = region_window(
                values == value,
                corner_yx=window.corner_yx,
                size_hw=window.size_hw,
                valid_hw=window.valid_hw,
                tile_px=self._tiling.tile_px,
            )
            instances.append((category_id, shown))
        sources = tuple(MaskOrigin(kind="expert", bank_id="", perturbation_seed=0) for _ in instances)
        return window, tuple(instances), sources

    def _class_of(self, value: int, *, single: bool) -> int:
        if single and self._class_name is not None:
            return self._ids[self._class_name]
        if single and len(self._ids) > 1:
            known = ", ".join(self._ids)
            raise ConfigError("option --mask", "does not say which class it is of", f"give --class, one of {known}")
        if value > len(self._ids):
            raise ConfigError("option --mask", f"holds class {value} of {len(self._ids)}", "correct the mask")
        return value


def _shown(drawing: Image, window: Window) -> Image:
    (top, left), (height, width) = window.corner_yx, window.size_hw
    return on_tile(drawing[top : top + height, left : left + width], window.valid_hw, window.tile.shape[0])
