"""Reads, from the files of a run, which images each consumer used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from defectory.artifacts.certificate import ImagesUsed, ImageUse, ReadFile, UsableSubset
from defectory.artifacts.difficulty import Difficulty
from defectory.artifacts.plan import MaskBank, Plan
from defectory.artifacts.tiles import TileSet
from defectory.config.project import ProjectConfig
from defectory.errors import InputError
from defectory.files import digest_file, read_manifest
from defectory.runs import layout
from defectory.runs.store import RunStore
from defectory.stages.check_concept import checks_concept
from defectory.stages.folds import NUM_FOLDS, needs_folds
from defectory.stages.parts.further_rounds import round_name
from defectory.stages.parts.student import distills
from defectory.stages.segment import stage_name

LEARNING: tuple[UsableSubset, ...] = ("train", "pool")
CHOOSING: tuple[UsableSubset, ...] = ("val",)
SCORING: tuple[UsableSubset, ...] = ("test",)
Read = Callable[[Path], Iterable[int]]
"""Returns the image ids that a file names."""


def image_uses(inputs: RunStore, config: ProjectConfig) -> list[ImageUse]:
    """Return what every consumer of a run used.

    Files are read as they lie there. One that is missing, unreadable, or not as its stage left it is a problem of its
    consumer, not an error.
    """
    return list(_uses(_Reader(inputs), config))


class _Reader:
    """Reads files of a run once, and compares each with the manifest of its stage."""

    def __init__(self, inputs: RunStore) -> None:
        self._inputs = inputs
        self._manifests: dict[str, Any] = {}

    def exists(self, folder: str, name: str) -> bool:
        return self._inputs.path(folder, name).is_file()

    def names(self, folder: str, subfolder: str) -> list[str]:
        """Return the JSON files of a subfolder that a stage wrote."""
        within = self._inputs.path(folder, subfolder)
        return sorted(f"{subfolder}/{path.name}" for path in within.glob("*.json"))

    def written(self, folder: str) -> list[str]:
        """Return the names of the files that a stage wrote, or that lie in its folder."""
        place = self._inputs.path(folder)
        there = {path.relative_to(place).as_posix() for path in place.rglob("*.json")}
        return sorted(there | self._recorded(folder).keys())

    def use(self, consumer: str, may_use: tuple[UsableSubset, ...], *sources: tuple[str, str, Read | None]) -> ImageUse:
        """Return what a consumer used, by files given as folder of the stage, name, and how ids are read from it.

        A file without a reader, such as weights, is only compared with its manifest.
        """
        ids: set[int] = set()
        files: list[ReadFile] = []
        unread: list[str] = []
        for folder, name, read in sources:
            place = f"{folder}/{name}"
            path = self._inputs.path(folder, name)
            try:
                digest = digest_file(path)
                files.append(ReadFile(name=place, sha256=digest))
                if digest != self._recorded(folder).get(name):
                    unread.append(f"{place} was changed after its stage wrote it")
                ids.update(() if read is None else read(path))
            except FileNotFoundError:
                unread.append(f"{place} is missing")
            except (OSError, ValueError, KeyError, TypeError, InputError):
                unread.append(f"{place} cannot be read, or does not say which images were used")
        return ImageUse(
            consumer=consumer, may_use=may_use, image_ids=tuple(sorted(ids)), files=tuple(files), unread=tuple(unread)
        )

    def _recorded(self, folder: str) -> dict[str, str]:
        if folder not in self._manifests:
            self._manifests[folder] = (read_manifest(self._inputs.path(folder)) or {"files": {}})["files"]
        return self._manifests[folder]

    def tile_images(self) -> dict[str, int]:
        """Return the image of each tile that training may see, by the tile's id."""
        tileset = TileSet.load(self._inputs.path(layout.TILES, layout.TILESET_FILE))
        return {tile.id: tile.image_id for tile in tileset.tiles}

    def bank_images(self) -> dict[str, int]:
        """Return the image of each mask of the bank, by the mask's id."""
        bank = MaskBank.load(self._inputs.path(layout.PLAN, layout.BANK_FILE))
        return {entry.id: entry.image_id for entry in bank.entries}


def _uses(run: _Reader, config: ProjectConfig) -> Iterator[ImageUse]:
    tileset = (layout.TILES, layout.TILESET_FILE)
    yield run.use("tiles of train and pool", LEARNING, (*tileset, _tiles("train", "pool")))
    yield run.use("tiles of validation", CHOOSING, (*tileset, _tiles("val")))
    class_images = "class_images.safetensors"
    prior = [(layout.CONCEPT, class_images, None)] if run.exists(layout.CONCEPT, class_images) else []
    yield run.use("prior", LEARNING, (layout.CONCEPT, layout.IMAGES_USED, _recorded("prior")), *prior)
    for name, folder in (("concept", layout.CONCEPT), ("control", layout.CONTROL)):
        yield run.use(name, LEARNING, (folder, layout.IMAGES_USED, _recorded("training")))
        yield run.use(f"{name}, held-out loss", CHOOSING, (folder, layout.IMAGES_USED, _recorded("held_out")))
    if checks_concept(config):
        checked = (layout.CONCEPT_CHECK, layout.IMAGES_USED, _recorded("reference"))
        yield run.use("concept check", LEARNING, checked)
    if distills(config):
        used = (layout.DISTILLED, layout.IMAGES_USED)
        yield run.use("student", LEARNING, (*used, _recorded("training")), (*used, _recorded("reference")))
        yield run.use("student, held-out loss", CHOOSING, (*used, _recorded("held_out")))
    if needs_folds(config):
        logs = [f"{layout.fold_folder(fold)}/{layout.SEGMENTER_LOG}" for fold in range(NUM_FOLDS)]
        judged = (layout.FOLDS, layout.DIFFICULTY_FILE, _difficulty)
        yield run.use("fold segmenters", LEARNING, *((layout.FOLDS, log, _log) for log in logs), judged)
    if config.masks.sources.diffusion > 0:
        yield run.use("mask model", LEARNING, (layout.MASK_MODEL, layout.IMAGES_USED, _recorded("training")))
    yield run.use("mask bank", LEARNING, (layout.PLAN, layout.BANK_FILE, _bank))
    yield run.use("plan", LEARNING, (layout.PLAN, layout.PLAN_FILE, lambda path: _plan(path, run)))
    yield run.use("mask guidance", LEARNING, (layout.CALIBRATION, layout.IMAGES_USED, _recorded("reference")))
    yield run.use("curation", LEARNING, (layout.CURATION, layout.IMAGES_USED, _recorded("reference")))
    yield from _rounds(run, config)
    yield run.use("synthetic set", LEARNING, (layout.SYNTHETIC, layout.PROVENANCE, _provenance))
    yield from _segmenters(run, config)
    yield run.use("tiles of test", SCORING, (layout.TEST_TILES, layout.TILESET_FILE, _tiles("test")))
    predictions = run.names(layout.EVALUATION, layout.PREDICTIONS)
    yield run.use("evaluate", SCORING, *((layout.EVALUATION, name, _predictions) for name in predictions))


def _rounds(run: _Reader, config: ProjectConfig) -> Iterator[ImageUse]:
    """Return what further rounds of drafts used, by the files that they wrote or that lie there."""
    for number in range(2, config.synthesis.rounds + 1):
        folder, name = layout.round_folder(number), round_name(number)
        written = run.written(folder)
        logs = [file for file in written if file.endswith(f"/{layout.SEGMENTER_LOG}")]
        judged = [file for file in written if file == layout.DIFFICULTY_FILE]
        yield run.use(
            f"{name}, segmenters",
            LEARNING,
            (folder, layout.TARGETS_FILE, None),
            *((folder, log, _log) for log in logs),
            *((folder, file, _difficulty) for file in judged),
        )
        used = (folder, layout.IMAGES_USED)
        yield run.use(f"{name}, validation", CHOOSING, (*used, _recorded("validation")))
        if layout.PLAN_FILE in written:
            yield run.use(f"{name}, plan", LEARNING, (folder, layout.PLAN_FILE, lambda path: _plan(path, run)))
            yield run.use(f"{name}, curation", LEARNING, (*used, _recorded("reference")))


def _segmenters(run: _Reader, config: ProjectConfig) -> Iterator[ImageUse]:
    for seed in config.segmentation.seeds:
        for arm in config.segmentation.arms:
            folder, name = layout.segmenter_folder(arm, seed), stage_name(arm, seed)
            if run.exists(folder, layout.SKIPPED_FILE):
                continue
            used = (folder, layout.IMAGES_USED)
            yield run.use(name, LEARNING, (folder, layout.SEGMENTER_LOG, _log))
            yield run.use(f"{name}, selection", CHOOSING, (*used, _recorded("selection")))
            yield run.use(f"{name}, threshold", CHOOSING, (*used, _recorded("threshold")))


def _recorded(purpose: str) -> Read:
    return lambda path: ImagesUsed.load(path).image_ids[purpose]


def _tiles(*subsets: str) -> Read:
    def read(path: Path) -> Iterable[int]:
        return [tile.image_id for tile in TileSet.load(path).tiles if tile.subset in subsets]

    return read


def _bank(path: Path) -> Iterable[int]:
    return [entry.image_id for entry in MaskBank.load(path).entries]


def _difficulty(path: Path) -> Iterable[int]:
    return [instance.image_id for instance in Difficulty.load(path).instances]


def _plan(path: Path, run: _Reader) -> Iterable[int]:
    """Return the images of a plan's tiles, and of its masks as far as they come from the bank."""
    jobs, tiles, bank = Plan.load(path).jobs, run.tile_images(), run.bank_images()
    masks = [source.bank_id for job in jobs for source in job.mask_sources if source.kind == "bank"]
    return [*(tiles[job.tile_id] for job in jobs), *(bank[mask] for mask in masks)]


def _provenance(path: Path) -> Iterable[int]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [image_id for line in lines for image_id in (*_ids(line["image_ids"]), int(line["pool"]["image_id"]))]


def _log(path: Path) -> Iterable[int]:
    ids = _ids(json.loads(path.read_bytes())["image_ids"])
    if not ids:
        raise ValueError("no image")
    return ids


def _predictions(path: Path) -> Iterable[int]:
    return [int(row["image_id"]) for row in json.loads(path.read_bytes())]


def _ids(values: Sequence[Any]) -> list[int]:
    return [int(value) for value in values]
