"""Writes a project's synthetic set, alone or with its real training images, as a folder that other tools train on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.tiles import Tile
from defectory.config.project import ProjectConfig
from defectory.events import Event, Progress, StageEnded
from defectory.files import canonical_json, digest_file, write_json, write_text
from defectory.folders.claims import require_replaceable
from defectory.folders.swap import atomic_folder
from defectory.formats.writers.base import ExportImage, ExportSet, Writer, Written
from defectory.formats.writers.registry import write_export
from defectory.images.decode import ORIENTATION
from defectory.images.frames import load_frame
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import box_of, decode, encode
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.runs.verify import Verified
from defectory.stages.all import stages_of
from defectory.stages.parts.drawing_mode import delivers_frames, synthesis_of
from defectory.stages.parts.synthetic_set import SyntheticImage, load_synthetic

KIND = "export"
READS = ("import", "split", "tiles", "plan", "export")
"""Stages whose files are read."""
MAX_STEM = 60
RealForm = Literal["tiles", "images"]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An image of the export, its provenance, the data set images it shows parts of, and what training ignores."""

    image: ExportImage
    record: dict[str, Any]
    image_ids: tuple[int, ...]
    ignored: dict[str, Any] | None = None


def default_form(inputs: RunStore, config: ProjectConfig) -> RealForm:
    """Return the form of real images that matches the synthetic set: `images` for whole images, else `tiles`."""
    return "images" if delivers_frames(synthesis_of(inputs, config), inputs.split) else "tiles"


def export_project(
    run: Run, writer: Writer, out: Path, *, real: RealForm | Literal["as drafts"] | None
) -> Generator[Event, None, None]:
    """Write the accepted drafts, and optionally the real training images, in one format.

    Only images of train and pool are exported, never those of val and test.

    Args:
        run: with all stages up to `export` finished.
        writer: of the format.
        out: folder, replaced as a whole if an earlier export made it.
        real: None leaves real images out; `tiles` adds train tiles with defects and pool tiles, as the segmenters see
            them; `images` adds whole train and pool images, byte for byte; `as drafts` is the one that matches the
            synthetic set.

    Raises:
        FirewallError: an image of val or test, or an unknown one, would be exported.
        OutputError: `out` was not made by an export, or cannot be written.
        StageError: an input stage of the project is damaged.
    """
    began, name = time.monotonic(), f"export {writer.name}"
    require_export_folder(run, out)
    stages, inputs = stages_of(run.config), run.store()
    Verified().require(run, [stage for stage in stages if stage.name in READS])
    form = default_form(inputs, run.config) if real == "as drafts" else real
    entries = [
        *_drafts(inputs),
        *(() if form is None else _real_tiles(inputs) if form == "tiles" else _real_images(inputs)),
    ]
    inputs.split.require_training_ids(
        (image_id for entry in entries for image_id in entry.image_ids), stage=f"export --format {writer.name}"
    )
    export = ExportSet(categories=inputs.data.dataset.categories, images=tuple(entry.image for entry in entries))
    digests: dict[str, str] = {}
    with atomic_folder(out, kind=KIND, digests=digests, sources=_sources(run)) as folder:
        yield Progress(stage=name, done=0, total=len(entries))
        written = write_export(writer, export, folder)
        lines = [_line(folder, written, entry, digests) for entry in entries if entry.image.name in written.paths]
        write_text(folder / layout.PROVENANCE, "".join(line + "\n" for line in lines))
        if (inputs.synthetic / layout.IGNORE_FILE).is_file():
            write_json(folder / layout.IGNORE_FILE, {"images": list(_ignored(entries, written))})
        yield Progress(stage=name, done=len(entries), total=len(entries))
    yield StageEnded(
        stage=name, seconds=time.monotonic() - began, skipped=False, summary=_summary(entries, written, out)
    )


def require_export_folder(run: Run, out: Path) -> None:
    """Require that an export may be written to a folder, before any work.

    Raises:
        OutputError: it holds files that no export made, or the project's own sources.
    """
    require_replaceable(out, kind=KIND, sources=_sources(run))


def _sources(run: Run) -> list[Path]:
    data = run.config.data
    named = (data.path, data.image_root, data.defect_free, data.index, data.class_colours)
    return [run.folder, *(run.sources.path(name) for name in named if name is not None)]


def _summary(entries: Sequence[_Entry], written: Written, out: Path) -> str:
    images = [entry.image for entry in entries if entry.image.name in written.paths]
    num_synthetic = sum(image.is_synthetic for image in images)
    told = "".join(f"; {remark}" for remark in written.remarks)
    return f"{len(images)} images ({num_synthetic} synthetic), {written.num_instances} instances in {out}{told}"


def _line(folder: Path, written: Written, entry: _Entry, digests: dict[str, str]) -> str:
    path = written.paths[entry.image.name]
    digests[path] = digest_file(folder / path)
    return canonical_json(
        {**entry.record, "image": path, "sha256": digests[path], "synthetic": entry.image.is_synthetic}
    )


def _ignored(entries: Sequence[_Entry], written: Written) -> Iterator[dict[str, Any]]:
    """Yield what training ignores in each image of the export that has something doubtful."""
    for entry in entries:
        if entry.ignored is not None and entry.image.name in written.paths:
            yield {"image": written.paths[entry.image.name], **entry.ignored}


def _doubt(of: SyntheticImage, names: Mapping[int, str]) -> dict[str, Any] | None:
    """Return what training ignores in a synthetic image; None if nothing is doubtful."""
    flags = of.is_doubtful or (False,) * len(of.instances)
    doubtful = [instance for instance, flag in zip(of.instances, flags, strict=True) if flag]
    if of.ignore is None and not doubtful:
        return None
    pixels = None if of.ignore is None else {"size": list(of.ignore.size_hw), "counts": of.ignore.counts}
    boxes = [(names[instance.category_id], box_of(instance.rle)) for instance in doubtful]
    return {"ignore": pixels, "doubtful": [{"class": name, "box_xyxy": list(box)} for name, box in boxes]}


def _drafts(inputs: RunStore) -> Iterator[_Entry]:
    """Yield the accepted drafts as the stage `export` wrote them."""
    for name in (layout.ANNOTATIONS, layout.PROVENANCE):
        inputs.checked(layout.SYNTHETIC, name)
    group_of = {record.id: record.group for record in inputs.data.dataset.images}
    names = {category.id: category.name for category in inputs.data.dataset.categories}
    for of in load_synthetic(inputs.synthetic):
        record = dict(of.provenance)
        image = ExportImage(
            name=f"synthetic-{of.path.name}",
            size_hw=of.size_hw,
            instances=of.instances,
            is_synthetic=True,
            save=partial(_copy, of.path),
            source=str(record["pool"]["file_name"]),
            group=group_of[int(record["pool"]["image_id"])],
            fidelity=of.fidelity,
            checks=of.checks,
        )
        yield _Entry(image=image, record=record, image_ids=of.image_ids, ignored=_doubt(of, names))


def _real_tiles(inputs: RunStore) -> Iterator[_Entry]:
    """Yield train tiles with defects and pool tiles, without padding, like the drafts."""
    dataset, tileset = inputs.data.dataset, inputs.tiles.tileset
    for tile in [*(tile for tile in tileset.of("train") if tile.instances), *tileset.of("pool")]:
        record, path = dataset.image(tile.image_id), inputs.tiles.path(tile)
        height, width = tile.valid_hw
        whole = tile.valid_hw == (tileset.tiling.tile_px, tileset.tiling.tile_px)
        image = ExportImage(
            name=f"real-{tile.id}.png",
            size_hw=tile.valid_hw,
            instances=tuple(i if whole else _within(i, tile) for i in tile.instances),
            is_synthetic=False,
            save=partial(_copy, path) if whole else partial(_save_part, path, (height, width)),
            source=record.file_name,
            group=record.group,
        )
        about = {"tile": tile.id, "offset_xy": list(tile.offset_xy), "scale": tile.scale, **_source(record)}
        yield _Entry(image=image, record=about, image_ids=(record.id,))


def _within(instance: Instance, tile: Tile) -> Instance:
    height, width = tile.valid_hw
    rle = encode(np.ascontiguousarray(decode(instance.rle)[:height, :width]))
    return Instance(category_id=instance.category_id, rle=rle, is_crowd=instance.is_crowd)


def _copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)


def _save_part(path: Path, size_hw: tuple[int, int], target: Path) -> None:
    save_png(target, np.ascontiguousarray(load_rgb(path)[: size_hw[0], : size_hw[1]]))


def _real_images(inputs: RunStore) -> Iterator[_Entry]:
    """Yield whole images of train and pool; pool images are defect-free."""
    dataset, split = inputs.data.dataset, inputs.split
    for image_id in (*split.train, *split.pool):
        record = dataset.image(image_id)
        path = inputs.data.path(record)
        image = ExportImage(
            name=f"real-{record.id:06d}-{_plain_stem(record)}{path.suffix.lower()}",
            size_hw=record.size_hw,
            instances=record.instances,
            is_synthetic=False,
            save=partial(_copy, path),
            source=record.file_name,
            group=record.group,
        )
        turned = _is_turned(path)
        if turned:
            # most readers of these formats ignore EXIF rotation, and the labels belong to the rotated image
            frame = load_frame(path, dataset.value_range, convert=True)
            image = replace(image, name=f"{image.stem}{frame.suffix}", save=partial(_save_upright, dataset, path))
        yield _Entry(
            image=image,
            record={**_source(record), **({"turned_by_exif": True} if turned else {})},
            image_ids=(record.id,),
        )


def _source(record: ImageRecord) -> dict[str, Any]:
    return {
        "source": {"image_id": record.id, "file_name": record.file_name, "sha256": record.sha256, "group": record.group}
    }


def _plain_stem(record: ImageRecord) -> str:
    """Return an image's name in characters that every system accepts."""
    stem = Path(record.file_name).stem
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)
    return plain[:MAX_STEM] or "image"


def _is_turned(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # a file that Pillow cannot open has no EXIF that another reader would use
        return False


def _save_upright(dataset: Dataset, path: Path, target: Path) -> None:
    frame = load_frame(path, dataset.value_range, convert=True)
    frame.save(target, frame.pixels)
