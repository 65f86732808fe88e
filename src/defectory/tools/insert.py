"""Inserts defects of a trained project into the user's frames, at their resolution and depth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance, masks_of
from defectory.artifacts.plan import Job, MaskOrigin, Plan
from defectory.artifacts.tiles import Tiling
from defectory.drawing import contact_sheet, draw_outlines
from defectory.drivers.extract import extract_driver
from defectory.engine.devices import device_of
from defectory.errors import ConfigError, ImageError
from defectory.events import Event, Progress, StageEnded
from defectory.filenames import file_name_of
from defectory.folders import atomic_folder, require_replaceable
from defectory.formats.coco import save_coco
from defectory.formats.raw import image_files
from defectory.imageio import FrameImage, image_size_hw, load_class_mask, load_frame, load_image, load_rgb, save_jpeg
from defectory.masks.placement import Site, site_of
from defectory.rle import decode, encode
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.runs.verify import Verified
from defectory.stages.all import stages_of
from defectory.stages.learn_condition import driver_digest
from defectory.stages.parts.drawings import named_files, on_tile, require_size
from defectory.stages.parts.held_out import require_not_held_out
from defectory.stages.parts.mask_supply import mask_supply
from defectory.stages.parts.regions import load_region, region_window
from defectory.stages.parts.sampling import sampling_models
from defectory.stages.plan import prompt_of
from defectory.synthesis.calibrate import guidance_map
from defectory.synthesis.export import Frame
from defectory.synthesis.full import DraftInput, draft_paths, synthesize
from defectory.tones import tone_words

READS = frozenset({"tiles", "learn-concept", "learn-condition"})
"""Stages whose files are read, in addition to values that are checked one by one."""
STAGE = "insert"
TRIES = 40
SHEET_IMAGES, SHEET_CELL_PX = 12, 256
LABEL_COLOUR = (40, 220, 60)
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """A user's frame and its companion files, as arrays [H,W] of its size."""

    file: Path
    frame: FrameImage
    image: Image
    remarks: tuple[str, ...]
    region: Mask | None
    drawing: Image | None
    mask: NDArray[np.int32] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Window:
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


def insert_into(
    run: Run,
    frames: Path | Sequence[Path],
    *,
    out: Path,
    count: int,
    class_name: str | None = None,
    mask_file: Path | None = None,
    region_file: Path | None = None,
    drawing_file: Path | None = None,
    seed: int = 0,
) -> Iterator[Event]:
    """Write `count` copies of each frame to `out/images`, each with one more defect, with labels and a sheet.

    Pixels beyond the margin around a label stay unchanged. The networks are loaded once for all frames.

    Args:
        run: with concept, control network and calibration made.
        frames: images of any size, or folders of them: grey or RGB, with or without alpha, 8 bit, 16 bit or float.
            Results have the frame's depth and range, as PNG, or as TIFF for TIFF frames.
        out: folder, replaced as a whole if an earlier insertion made it.
        count: copies of each frame.
        class_name: of the defects; None draws classes as often as they occur in train.
        mask_file: mask of the frame's size with class numbers, or with one value for `class_name`. The defect is drawn
            exactly where it is not black.
        region_file: image of the frame's size, white where defects may lie; None allows the whole part.
        drawing_file: drawing of the frame's size, if the project takes geometry from drawings. With several frames,
            each of the three files is a folder with one file per frame name.
        seed: of places, masks and noise.

    Raises:
        ConfigError: an unknown class, no place for a defect, or a missing or superfluous drawing.
        ImageError: a frame or a companion file cannot be used, a frame has a format that cannot be written back
            (palette, black and white, CMYK), or it belongs to val or test.
        OutputError: `out` holds files that no insertion made.
        StageError: an input stage of the run is damaged.
    """
    began, inputs = time.monotonic(), run.store()
    dataset = inputs.data.dataset
    if class_name is not None and class_name not in {c.name for c in dataset.categories}:
        known = ", ".join(c.name for c in dataset.categories)
        raise ConfigError(f"class {class_name!r}", "is not one of the project's", f"choose among {known}")
    require_replaceable(out, kind="insert")
    files = _frame_files([frames] if isinstance(frames, Path) else frames)
    yield Progress(stage=STAGE, done=0, total=count * len(files), note="reading images")
    companions = {"mask": mask_file, "region": region_file, "drawing": drawing_file}
    targets = [_read(run, inputs, file, companions, several=len(files) > 1) for file in files]
    Verified().require(run, [stage for stage in stages_of(run.config) if stage.name in READS])
    yield Progress(stage=STAGE, done=0, total=count * len(files), note="placing defects")
    plan, windows = _plan(run, inputs, targets, count=count, class_name=class_name, seed=seed)
    # a separate folder: drafts left by a killed run may belong to another plan
    with TemporaryDirectory() as drafts:
        yield from _draw(run, inputs, plan, windows, Path(drafts))
        _write(targets, out, plan, windows, Path(drafts))
    told = "".join(f"; {remark}" for remark in dict.fromkeys(r for target in targets for r in target.remarks))
    images = f"{len(plan.jobs)} image{'' if len(plan.jobs) == 1 else 's'}"
    summary = f"{images} in {out / 'annotations.json'}{told}"
    yield StageEnded(stage=STAGE, seconds=time.monotonic() - began, skipped=False, summary=summary)


def _frame_files(frames: Sequence[Path]) -> list[Path]:
    files = [file for path in frames for file in (image_files(path) if path.is_dir() else [path])]
    if not files:
        raise ImageError(", ".join(str(path) for path in frames), "no images here", "give images or folders of them")
    return list(dict.fromkeys(files))


def _read(run: Run, inputs: RunStore, file: Path, companions: Mapping[str, Path | None], *, several: bool) -> _Target:
    value_range = inputs.data.dataset.value_range
    # read before it is compared, so that an unreadable file gets its own message
    frame, loaded = load_frame(file, value_range), load_image(file, value_range)
    require_not_held_out(inputs, file)
    size_hw = (loaded.rgb.shape[0], loaded.rgb.shape[1])
    found = {
        name: None if path is None else _companion(path, file, option=name, several=several)
        for name, path in companions.items()
    }
    region, mask = found["region"], found["mask"]
    return _Target(
        file=file,
        frame=frame,
        image=loaded.rgb,
        remarks=loaded.remarks,
        region=None if region is None else load_region(region, size_hw),
        drawing=_drawing(run, found["drawing"], size_hw),
        mask=None if mask is None else _load_mask(mask, size_hw),
    )


def _companion(path: Path, frame: Path, *, option: str, several: bool) -> Path:
    """Return a frame's companion file: the given file, or the one with the frame's name in a given folder."""
    if path.is_dir():
        found = named_files(path)[1].get(frame.stem)
        if found is None:
            raise ConfigError(f"option --{option}", f"{path} holds no file named as {frame.name}", "add one")
        return found
    if several:
        raise ConfigError(
            f"option --{option}", "is one file, and there are several images", "give a folder with one file for each"
        )
    return path


def _load_mask(path: Path, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Load a mask as class numbers, int32 [H,W]; in a mask with one value besides 0, that value becomes 1."""
    values = load_class_mask(path).astype(np.int32)
    require_size(path, (values.shape[0], values.shape[1]), size_hw)
    present = np.unique(values[values > 0])
    if present.size == 0:
        raise ImageError(path, "is black everywhere", "paint where the defect is to be drawn")
    return (values > 0).astype(np.int32) if present.size == 1 else values


def _draw(run: Run, inputs: RunStore, plan: Plan, windows: Mapping[str, _Window], drafts: Path) -> Iterator[Progress]:
    config, guidance = run.config, inputs.calibration.by_category()

    def input_of(job: Job) -> DraftInput:
        window, instances = windows[job.id], masks_of(job.instances)
        driver, empty = (
            extract_driver(
                window.geometry,
                shown,
                num_classes=len(plan.categories),
                config=config.drivers,
                blind=[m for _, m in instances],
                valid_hw=window.valid_hw,
            )
            for shown in (instances, ())
        )
        return DraftInput(
            driver=driver,
            empty_driver=empty,
            tile=window.tile,
            valid_hw=window.valid_hw,
            mask_guidance=guidance_map(instances, guidance, driver.shape[:2]),
        )

    yield Progress(stage=STAGE, done=0, total=len(plan.jobs), note="loading networks")
    device = device_of(config.device, threads=config.threads)
    models = sampling_models(inputs.concept, inputs.control, device, base=config.base)
    for event in synthesize(
        plan,
        models=models,
        class_noun=inputs.concept.concept.class_noun,
        input_of=input_of,
        config=config.synthesis.model_copy(update={"mode": "insert"}),
        out=drafts,
    ):
        yield Progress(stage=STAGE, done=event.done, total=event.total)


def _drawing(run: Run, file: Path | None, size_hw: tuple[int, int]) -> Image | None:
    wanted = run.config.drivers.drawings is not None
    if file is None and wanted:
        raise ConfigError(
            "option --drawing", "is missing, and the project takes geometry from drawings", "give the frame's drawing"
        )
    if file is None:
        return None
    if not wanted:
        raise ConfigError("option --drawing", "is given, and the project takes geometry from images", "leave it out")
    require_size(file, image_size_hw(file), size_hw)
    return load_rgb(file)


def _window_at(image: Image, tiling: Tiling, corner_yx: tuple[int, int]) -> _Window:
    """Cut the tile at an upper left corner, pixels, out of a frame; in frame mode, take the whole frame."""
    from defectory.dataset.tiles import cut_window, frame_image, resize_image

    if tiling.mode == "frame":
        tile, valid_hw = frame_image(image, tiling)
        return _Window(tile=tile, valid_hw=valid_hw, corner_yx=(0, 0), size_hw=(image.shape[0], image.shape[1]))
    side, (top, left) = round(tiling.tile_px / tiling.scale), corner_yx
    native = image[top : top + side, left : left + side]
    size_hw = (native.shape[0], native.shape[1])
    scaled_hw = tuple(min(tiling.tile_px, max(1, round(length * tiling.scale))) for length in size_hw)
    tile, valid_hw = cut_window(resize_image(native, (scaled_hw[0], scaled_hw[1])), (0, 0), tiling.tile_px)
    return _Window(tile=tile, valid_hw=valid_hw, corner_yx=(top, left), size_hw=size_hw)


def _window_anywhere(image: Image, tiling: Tiling, rng: np.random.Generator) -> _Window:
    side = round(tiling.tile_px / tiling.scale)
    if tiling.mode == "frame":
        return _window_at(image, tiling, (0, 0))
    top, left = (int(rng.integers(0, max(0, length - side) + 1)) for length in image.shape[:2])
    return _window_at(image, tiling, (top, left))


def _plan(
    run: Run, inputs: RunStore, targets: Sequence[_Target], *, count: int, class_name: str | None, seed: int
) -> tuple[Plan, dict[str, _Window]]:
    tileset, concept, control = inputs.tiles.tileset, inputs.concept.concept, inputs.control.control
    noun = run.config.condition.defect_noun
    placer = _Placer(inputs, run, class_name)
    jobs: list[Job] = []
    windows: dict[str, _Window] = {}
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


Placed = tuple["_Window", tuple[tuple[int, Mask], ...], tuple[MaskOrigin, ...]]


class _Placer:
    """Chooses where a defect lies on a frame, and its mask."""

    def __init__(self, inputs: RunStore, run: Run, class_name: str | None) -> None:
        tileset = inputs.tiles.tileset
        self._tiling, self._supply = tileset.tiling, mask_supply(inputs, run.config)
        self._ids = {c.name: c.id for c in tileset.categories}
        self._class_name = class_name
        self._frequent = [i.category_id for tile in tileset.of("train") for i in tile.instances if not i.is_crowd]

    def place(self, target: _Target, rng: np.random.Generator) -> Placed:
        """Return the window, the instances and the origins of their masks."""
        if target.mask is not None:
            return self._by_mask(target, target.mask)
        for _ in range(TRIES):
            window = _window_anywhere(target.image, self._tiling, rng)
            site = site_of(window.tile, window.valid_hw)
            if target.region is not None:
                shown = region_window(
                    target.region,
                    corner_yx=window.corner_yx,
                    size_hw=window.size_hw,
                    valid_hw=window.valid_hw,
                    tile_px=self._tiling.tile_px,
                )
                site = Site(allowed=site.allowed & shown, borders=site.borders)
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

    def _by_mask(self, target: _Target, values: NDArray[np.int32]) -> Placed:
        """Return the window around a user's mask, and the part of the mask inside it."""
        rows, columns = (np.flatnonzero(values.any(axis=axis)) for axis in (1, 0))
        side = round(self._tiling.tile_px / self._tiling.scale)
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        if self._tiling.mode == "tile" and max(height, width) > side:
            raise ConfigError(
                target.file, f"its mask is {height}x{width} px, a tile shows {side} px", "give a smaller mask"
            )
        corner = [
            int(np.clip((first + last + 1 - side) // 2, 0, max(0, length - side)))
            for first, last, length in (
                (rows[0], rows[-1], values.shape[0]),
                (columns[0], columns[-1], values.shape[1]),
            )
        ]
        window = _window_at(target.image, self._tiling, (corner[0], corner[1]))
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


def _shown(drawing: Image, window: _Window) -> Image:
    (top, left), (height, width) = window.corner_yx, window.size_hw
    return on_tile(drawing[top : top + height, left : left + width], window.valid_hw, window.tile.shape[0])


def _write(targets: Sequence[_Target], out: Path, plan: Plan, windows: Mapping[str, _Window], drafts: Path) -> None:
    names = {category.id: category.name for category in plan.categories}
    count = len(plan.jobs) // len(targets)
    stems = _stems(targets)
    cells: list[Image] = []
    told: list[str] = []
    with atomic_folder(out, kind="insert") as folder:
        (folder / "images").mkdir()
        images: list[tuple[int, str, tuple[int, int], dict[str, object]]] = []
        labels: list[tuple[int, Instance]] = []
        for number, job in enumerate(plan.jobs, start=1):
            target, window = targets[(number - 1) // count], windows[job.id]
            if (number - 1) % count == 0 and number <= SHEET_IMAGES:
                cells.append(target.frame.rgb())
                told.append("as it was")
            height, width = window.valid_hw
            frame = Frame(
                image=target.frame,
                tile=window.tile[:height, :width],
                corner_yx=window.corner_yx,
                size_hw=window.size_hw,
            )
            after = np.ascontiguousarray(load_rgb(draft_paths(drafts, job.id)[0])[:height, :width])
            pixels, name = frame.with_defect(after), f"{stems[(number - 1) // count]}-{job.id}{frame.suffix}"
            frame.save(folder / "images" / name, pixels)
            images.append((number, name, (pixels.shape[0], pixels.shape[1]), {}))
            for instance in job.instances:
                mask = _label_in(target, frame, instance, window)
                labels.append((number, Instance(category_id=instance.category_id, rle=encode(mask))))
                if number <= SHEET_IMAGES:
                    shown = target.frame.rgb(pixels)
                    cells += [shown, draw_outlines(shown, [(LABEL_COLOUR, mask)])]
                    told += [f"{number}: {names[instance.category_id]}", "its label"]
        save_coco(folder / "annotations.json", plan.categories, images, labels)
        save_jpeg(folder / "sheet.jpg", contact_sheet(cells, columns=5, labels=told, cell_px=SHEET_CELL_PX))


def _stems(targets: Sequence[_Target]) -> list[str]:
    """Return a unique file name stem for each frame."""
    taken: set[str] = set()
    stems: list[str] = []
    for number, target in enumerate(targets, start=1):
        stem = file_name_of(target.file.stem)
        stem = f"{stem}-{number}" if stem.casefold() in taken else stem
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _label_in(target: _Target, frame: Frame, instance: Instance, window: _Window) -> Mask:
    """Place a label in its frame, bool [H,W]; use the user's mask itself if the label is the whole mask."""
    height, width = window.valid_hw
    if target.mask is not None and int(target.mask.max()) == 1:
        return target.mask > 0
    return frame.placed(decode(instance.rle)[:height, :width])
