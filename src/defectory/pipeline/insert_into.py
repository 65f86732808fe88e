"""Defects of a trained project inserted into frames of the user's own, at their own resolution and depth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Job, Plan
from defectory.artifacts.tiles import Tiling
from defectory.artifacts.weights import Concept, Control
from defectory.drawing import contact_sheet, draw_outlines
from defectory.drivers.extract import extract_driver
from defectory.errors import ConfigError
from defectory.filenames import file_name_of
from defectory.folders import atomic_folder, require_replaceable
from defectory.formats.coco import save_coco
from defectory.imageio import FrameImage, image_size_hw, load_frame, load_image, load_rgb, save_jpeg
from defectory.masks.placement import Site, site_of
from defectory.pipeline.drawings import on_tile, require_size
from defectory.pipeline.generate_stages import calibration_of, driver_digest, mask_supply, prompt_of, sampling_models
from defectory.pipeline.held_out import require_not_held_out
from defectory.pipeline.regions import load_region, region_window
from defectory.pipeline.run import stages_of
from defectory.pipeline.stage import Event, Progress, Project, StageEnded
from defectory.pipeline.values import dataset_of, masks_of, tileset_of
from defectory.pipeline.verify import Verified, checked
from defectory.rle import decode, encode
from defectory.synthesis.calibrate import guidance_map
from defectory.synthesis.export import Frame
from defectory.synthesis.full import DraftInput, draft_paths, synthesize
from defectory.tones import tone_words

READS = frozenset({"tiles", "learn-concept", "learn-condition"})
"""Stages whose files are read besides the values that are checked one by one."""
TRIES = 40
SHEET_IMAGES, SHEET_CELL_PX = 12, 256
LABEL_COLOUR = (40, 220, 60)
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


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
        """Give what drivers take their geometry from, RGB uint8 [tile_px,tile_px,3]."""
        return self.tile if self.drawing is None else self.drawing


def insert_into(
    project: Project,
    frame_file: Path,
    *,
    out: Path,
    count: int,
    class_name: str | None,
    region_file: Path | None,
    seed: int,
    drawing_file: Path | None = None,
) -> Iterator[Event]:
    """Write `count` copies of a frame into `out/images`, each with one defect more, `out/annotations.json` with their
    labels, and a sheet.

    Pixels beyond the margin around a label are those of the frame.

    Args:
        project: whose concept, control network and calibration have been made.
        frame_file: image of any size; grey or RGB, with or without alpha, of 8 or 16 bit or of floats. What is written
            has its depth and
            range: PNG, or TIFF where the frame is one.
        out: folder, replaced as a whole where an earlier insertion made it.
        count: how many.
        class_name: of the defects; None draws classes as often as they occur in train.
        region_file: PNG of the frame's size, white where defects may lie; None allows all of the part.
        seed: of places, masks and noise.
        drawing_file: drawing of the frame, of its size, where the project takes geometry from drawings.

    Raises:
        ConfigError: an unknown class, no place for a defect, or a drawing too few or too many.
        ImageError: the frame, the region or the drawing cannot be used, the frame is of a kind that cannot be written
            again (a palette, black and white, CMYK), or it belongs to validation or test.
        OutputError: `out` holds something that no insertion made.
        StageError: a stage of the project that is read is damaged.
    """
    began = time.monotonic()
    categories = dataset_of(project).categories
    if class_name is not None and class_name not in {c.name for c in categories}:
        raise ConfigError(
            f"class {class_name!r}",
            "is not one of the project's",
            f"choose among {', '.join(c.name for c in categories)}",
        )
    require_replaceable(out, kind="insert")
    value_range = dataset_of(project).value_range
    # read before it is compared: what is wrong with a file is told in words of its own
    frame, loaded = load_frame(frame_file, value_range), load_image(frame_file, value_range)
    require_not_held_out(project, frame_file)
    Verified().require(project, [stage for stage in stages_of(project) if stage.name in READS])
    image = loaded.rgb
    region = None if region_file is None else load_region(region_file, (image.shape[0], image.shape[1]))
    drawing = _drawing(project, drawing_file, (image.shape[0], image.shape[1]))
    plan, windows = _plan(project, image, frame_file, region, drawing, count=count, class_name=class_name, seed=seed)
    config = project.config.synthesis.model_copy(update={"mode": "insert"})
    guidance = calibration_of(project).by_category()
    noun = Concept.load(checked(project, "concept", "concept.json")).class_noun

    def input_of(job: Job) -> DraftInput:
        window, instances = windows[job.id], masks_of(job.instances)
        driver, empty = (
            extract_driver(
                window.geometry,
                shown,
                num_classes=len(categories),
                config=project.config.drivers,
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

    # a folder of its own: drafts left by a run that was killed may be of another plan
    with TemporaryDirectory() as drafts:
        models = sampling_models(project)
        for event in synthesize(
            plan, models=models, class_noun=noun, input_of=input_of, config=config, out=Path(drafts)
        ):
            yield Progress(stage="insert", done=event.done, total=event.total)
        _write(frame, file_name_of(frame_file.stem), out, plan, windows, Path(drafts))
    told = "".join(f"; {remark}" for remark in loaded.remarks)
    yield StageEnded(
        stage="insert",
        seconds=time.monotonic() - began,
        skipped=False,
        summary=f"{count} images in {out / 'annotations.json'}{told}",
    )


def _drawing(project: Project, file: Path | None, size_hw: tuple[int, int]) -> Image | None:
    wanted = project.config.drivers.drawings is not None
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


def _window_of(image: Image, tiling: Tiling, rng: np.random.Generator) -> _Window:
    """Cut a tile anywhere out of a frame, or take all of it, as the project's tiling does."""
    from defectory.dataset.tiles import cut_window, frame_image, resize_image

    if tiling.mode == "frame":
        tile, valid_hw = frame_image(image, tiling)
        return _Window(tile=tile, valid_hw=valid_hw, corner_yx=(0, 0), size_hw=(image.shape[0], image.shape[1]))
    side = round(tiling.tile_px / tiling.scale)
    top, left = (int(rng.integers(0, max(0, length - side) + 1)) for length in image.shape[:2])
    native = image[top : top + side, left : left + side]
    size_hw = (native.shape[0], native.shape[1])
    scaled_hw = tuple(min(tiling.tile_px, max(1, round(length * tiling.scale))) for length in size_hw)
    tile, valid_hw = cut_window(resize_image(native, (scaled_hw[0], scaled_hw[1])), (0, 0), tiling.tile_px)
    return _Window(tile=tile, valid_hw=valid_hw, corner_yx=(top, left), size_hw=size_hw)


def _plan(
    project: Project,
    image: Image,
    where: Path,
    region: Mask | None,
    drawing: Image | None,
    *,
    count: int,
    class_name: str | None,
    seed: int,
) -> tuple[Plan, dict[str, _Window]]:
    tileset, concept = tileset_of(project), Concept.load(checked(project, "concept", "concept.json"))
    control = Control.load(project.path("control", "control.json"))
    supply = mask_supply(project)
    ids = {c.name: c.id for c in tileset.categories}
    frequent = [i.category_id for tile in tileset.of("train") for i in tile.instances if not i.is_crowd]
    jobs: list[Job] = []
    windows: dict[str, _Window] = {}
    for number in range(count):
        rng = np.random.default_rng([71, seed, number])
        for _ in range(TRIES):
            window = _window_of(image, tileset.tiling, rng)
            site = site_of(window.tile, window.valid_hw)
            if region is not None:
                shown = region_window(
                    region,
                    corner_yx=window.corner_yx,
                    size_hw=window.size_hw,
                    valid_hw=window.valid_hw,
                    tile_px=tileset.tiling.tile_px,
                )
                site = Site(allowed=site.allowed & shown, borders=site.borders)
            category_id = ids[class_name] if class_name is not None else frequent[int(rng.integers(len(frequent)))]
            drawn = supply.sources.draw(category_id, rng)
            mask = (
                None if drawn is None else supply.place(drawn[0], category_id, site, np.zeros_like(site.allowed), rng)
            )
            if drawn is not None and mask is not None and mask.any():
                break
        else:
            raise ConfigError(
                where, f"no place for a defect in {TRIES} tries", "allow a larger region, or another class"
            )
        name = tileset.categories[category_id - 1].name
        shown_part = window.tile[: window.valid_hw[0], : window.valid_hw[1]]
        tone = (
            tone_words(shown_part, without=mask[: window.valid_hw[0], : window.valid_hw[1]])
            if concept.tone_words
            else ""
        )
        job = Job(
            id=f"{number:06d}",
            tile_id=where.stem,
            augmentation_seed=None,
            instances=(Instance(category_id=category_id, rle=encode(mask)),),
            mask_sources=(drawn[1],),
            prompt=prompt_of(project, concept, (name,), tone),
            prompt_without=prompt_of(project, concept, (), tone),
            seed=int(rng.integers(2**31)),
        )
        jobs.append(job)
        windows[job.id] = window if drawing is None else replace(window, drawing=_shown(drawing, window))
    plan = Plan(
        concept_digest=concept.weights_digest,
        control_digest=control.weights_digest,
        driver_config_digest=driver_digest(project),
        categories=tileset.categories,
        jobs=tuple(jobs),
    )
    return plan, windows


def _shown(drawing: Image, window: _Window) -> Image:
    (top, left), (height, width) = window.corner_yx, window.size_hw
    return on_tile(drawing[top : top + height, left : left + width], window.valid_hw, window.tile.shape[0])


def _write(
    frame_image: FrameImage, stem: str, out: Path, plan: Plan, windows: dict[str, _Window], drafts: Path
) -> None:
    categories: tuple[Category, ...] = plan.categories
    names = {category.id: category.name for category in categories}
    cells, told = [frame_image.rgb()], ["as it was"]
    with atomic_folder(out, kind="insert") as folder:
        (folder / "images").mkdir()
        images: list[tuple[int, str, tuple[int, int], dict[str, object]]] = []
        labels: list[tuple[int, Instance]] = []
        for number, job in enumerate(plan.jobs, start=1):
            window = windows[job.id]
            height, width = window.valid_hw
            frame = Frame(
                image=frame_image, tile=window.tile[:height, :width], corner_yx=window.corner_yx, size_hw=window.size_hw
            )
            after = np.ascontiguousarray(load_rgb(draft_paths(drafts, job.id)[0])[:height, :width])
            pixels, name = frame.with_defect(after), f"{stem}-{job.id}{frame.suffix}"
            frame.save(folder / "images" / name, pixels)
            images.append((number, name, (pixels.shape[0], pixels.shape[1]), {}))
            for instance in job.instances:
                mask = frame.placed(decode(instance.rle)[:height, :width])
                labels.append((number, Instance(category_id=instance.category_id, rle=encode(mask))))
                if number <= SHEET_IMAGES:
                    shown = frame_image.rgb(pixels)
                    cells += [shown, draw_outlines(shown, [(LABEL_COLOUR, mask)])]
                    told += [f"{number}: {names[instance.category_id]}", "its label"]
        save_coco(folder / "annotations.json", categories, images, labels)
        save_jpeg(folder / "sheet.jpg", contact_sheet(cells, columns=5, labels=told, cell_px=SHEET_CELL_PX))
