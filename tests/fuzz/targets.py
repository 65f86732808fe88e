"""What the fuzzer calls: every reader of a user's files, on a folder whose files were damaged."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import sets
from .mutators import TEXTS, weird


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader and its valid input.

    Attributes:
        name: for seeds and tables.
        make: writes the valid input into a folder and returns the path that is given to the reader.
        read: reads it; may raise a DefectoryError and nothing else.
        weight: how often it is drawn.
        passes: whether the valid input is read without an error.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path, random.Random], object]
    weight: int = 1
    passes: bool = True


def load_set(name: str) -> Callable[[Path, random.Random], object]:
    """Return a reader that loads a set in a format, or in the one that is recognised, with drawn options."""

    def read(path: Path, rng: random.Random) -> object:
        from defectory.formats.raw import LoadOptions
        from defectory.formats.registry import load

        root = path if path.is_dir() else path.parent
        options = LoadOptions(
            skip_bad=rng.random() < 0.4,
            unlabelled=rng.choice(("skip", "skip", "refuse", "defect-free")),
            mask_threshold=rng.choice((None, None, None, 1, 128, 255)),
            min_area_px=rng.choice((0, 0, 5, 10**9)),
            follow_links=rng.random() < 0.2,
            image_root=root if rng.random() < 0.1 else None,
            class_colours=root / "colours.json" if (root / "colours.json").exists() and rng.random() < 0.5 else None,
        )
        return load(path, options, name="auto" if rng.random() < 0.5 else name)

    return read


def use_set(path: Path, rng: random.Random) -> None:
    """Import a set and take it as far as tiles."""
    from defectory.artifacts.dataset import MANIFEST, Dataset
    from defectory.dataset.check import check_dataset, write_contact_sheet
    from defectory.dataset.config import DataConfig, SplitConfig, TilingConfig
    from defectory.dataset.importer import import_dataset
    from defectory.dataset.split.make import make_split
    from defectory.dataset.tiles import choose_tiling, cut_tiles
    from defectory.events import finish

    work = path.parent / f"{path.name}.used" if path.is_dir() else path.parent.parent / f"{path.parent.name}.used"
    shutil.rmtree(work, ignore_errors=True)
    try:
        config = DataConfig(path=str(path), skip_bad=rng.random() < 0.6, unlabelled=rng.choice(("skip", "defect-free")))
        import_dataset(config, work / "data")
        dataset = Dataset.load(work / "data" / MANIFEST)
        check_dataset(work / "data", dataset)
        write_contact_sheet(work / "data", dataset, work / "sheet.png", per_class=2)
        split = make_split(work / "data", dataset, SplitConfig())
        split.require_training_ids(split.train, stage="fuzz")
        config = TilingConfig(mode=rng.choice(("auto", "tile", "frame")))
        tiling = choose_tiling(dataset, split, config, 32)
        finish(
            cut_tiles(
                work / "data",
                dataset,
                split,
                tiling,
                subsets=("train", "pool", "val", "test"),
                out=work / "tiles",
                config=config,
                seed=0,
            )
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def image_file(name: str) -> Target:
    """One image file, read in every way."""

    def make(root: Path) -> Path:
        for other, data in sets.images().items():
            if other == name:
                sets.write(root / other, data)
        return root / name

    return Target(name=f"image/{name}", make=make, read=read_image, passes=name != "no_tags.tif")


def read_image(path: Path, rng: random.Random) -> None:
    """Read an image in every way; the first refusal ends none of the others."""
    from defectory.errors import DefectoryError
    from defectory.images.facts import image_size_hw, measure_value_range, remarks_of
    from defectory.images.frames import load_frame
    from defectory.images.load import load_class_mask, load_image
    from defectory.images.valuerange import ValueRange

    ranges = (None, ValueRange(low=0, high=4095), ValueRange(low=0.0, high=1.0))
    calls: list[Callable[[], object]] = [
        lambda: load_image(path, rng.choice(ranges)),
        lambda: image_size_hw(path),
        lambda: remarks_of(path),
        lambda: load_class_mask(path),
        lambda: measure_value_range([path, path]),
        lambda: load_frame(path),
    ]
    refused: DefectoryError | None = None
    for call in calls if rng.random() < 0.5 else rng.sample(calls, 2):
        try:
            call()
        except DefectoryError as error:
            require_line(error)
            refused = error
    if refused is not None:
        raise refused


def require_line(error: Exception) -> None:
    """Require that an error's message is one printable line of a length that people read."""
    text = str(error)
    assert text, f"{type(error).__name__} without a message"
    assert len(text.splitlines()) == 1, f"a message of several lines: {text[:300]!r}"
    assert len(text) <= 2000, f"a message of {len(text)} letters: {text[:300]!r}"
    moving = [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert not moving, f"letters that are no text: {moving[:5]!r} in {text[:300]!r}"


def project(root: Path) -> Path:
    """A project file with a value in many sections."""
    from defectory.config.template import project_template

    values: dict[str, Any] = {
        "name": "parts",
        "base": "embedded",
        "data": {"path": "annotations.json", "classes": ["scratch", "dent"]},
        "split": {"val_share": 0.2},
        "tiling": {"tile_px": 64, "scale": 0.5},
    }
    return sets.write(root / "project.toml", project_template(values, preset="cpu"))


def read_project(path: Path, rng: random.Random) -> None:
    """Resolve a project file with drawn overrides and environment."""
    from defectory.config.resolve import defaults, resolve

    keys = [*defaults(), "data", "x", "", "split.", ".split", "split.x.y"]
    overrides = [
        f"{rng.choice(keys)}{rng.choice(('=', '=', '=', '', ' = ', ':'))}{drawn_text(rng)}"
        for _ in range(rng.choice((0, 0, 1, 2)))
    ]
    environment = {
        f"DEFECTORY_{rng.choice(keys).upper().replace('.', '__')}": drawn_text(rng).replace("\0", "")
        for _ in range(rng.choice((0, 0, 1)))
    }
    resolve(
        project_file=path, environment=environment, overrides=overrides, preset=rng.choice((None, None, "cpu", "x"))
    )


def drawn_text(rng: random.Random) -> str:
    """Return the text of a setting's value."""
    value = weird(rng)
    return rng.choice(TEXTS) if rng.random() < 0.4 else json.dumps(value) if rng.random() < 0.7 else str(value)


def values(root: Path) -> Path:
    """Every value that stages exchange and that a few lines make, and a marker and a manifest."""
    from defectory.artifacts.dataset import MANIFEST, Dataset
    from defectory.artifacts.plan import (
        Check,
        Decision,
        Decisions,
        Fidelity,
        Job,
        MaskBank,
        MaskBankEntry,
        MaskOrigin,
        Plan,
    )
    from defectory.artifacts.split import Split
    from defectory.artifacts.tiles import Tile, TileInstance, TileSet, Tiling
    from defectory.files import finish_stage

    data = sets.defectory(root)
    dataset = Dataset.load(data / MANIFEST)
    one = dataset.images[0].instances[0]
    split = Split(
        dataset_digest=dataset.digest(),
        seed=0,
        fraction=1.0,
        train=(1, 2),
        val=(3,),
        test=(4,),
        pool=(5,),
        pool_source="images",
    )
    split.save(root / "split.json")
    tile = Tile(
        id="train-000001-000",
        file_name="images/a.png",
        image_id=1,
        subset="train",
        offset_xy=(0.0, 0.0),
        scale=1.0,
        valid_hw=sets.SIZE_HW,
        instances=(TileInstance(**one.model_dump(), number=0),),
    )
    tiling = Tiling(mode="tile", tile_px=36, scale=1.0, reason="test")
    TileSet(tiling=tiling, categories=dataset.categories, split_digest="d", tiles=(tile,)).save(root / "tileset.json")
    entry = MaskBankEntry(id="m0", tile_id=tile.id, image_id=1, category_id=1, mask=one)
    MaskBank(split_digest="d", entries=(entry,)).save(root / "bank.json")
    job = Job(
        id="j0",
        tile_id=tile.id,
        augmentation_seed=None,
        instances=(one,),
        mask_sources=(MaskOrigin(bank_id="m0", perturbation_seed=1),),
        prompt="a",
        prompt_without="b",
        seed=3,
    )
    Plan(
        concept_digest="a", control_digest="b", driver_config_digest="c", categories=dataset.categories, jobs=(job,)
    ).save(root / "plan.json")
    fidelity = Fidelity(iou=0.5, per_instance_iou=(0.5,), outside_fraction=0.1, f1_2px=(None,))
    decision = Decision(
        job_id="j0",
        status="accepted",
        reason="good",
        fidelity=fidelity,
        checks=(Check(name="blur", value=1.0, limit=2.0),),
    )
    Decisions(plan_digest="p", threshold=0.4, decisions=(decision,)).save(root / "decisions.json")
    finish_stage(
        root / "data",
        inputs_digest="0" * 64,
        inputs={"tiles": "1"},
        settings={"seed": 0},
        files={"a.png": "2"},
        summary="done",
        seconds=1.0,
    )
    return root


def read_values(root: Path, rng: random.Random) -> None:
    """Load every value, its marker and its manifest, and check the data set."""
    from defectory.artifacts.dataset import MANIFEST, Dataset
    from defectory.artifacts.plan import Decisions, MaskBank, Plan
    from defectory.artifacts.split import Split
    from defectory.artifacts.tiles import TileSet
    from defectory.artifacts.value import Value
    from defectory.dataset.check import check_dataset, write_contact_sheet
    from defectory.errors import DefectoryError
    from defectory.files import read_manifest
    from defectory.folders.marker import is_ours, read_marker

    kinds: dict[str, type[Value]] = {
        "split.json": Split,
        "tileset.json": TileSet,
        "bank.json": MaskBank,
        "plan.json": Plan,
        "decisions.json": Decisions,
    }
    refused: DefectoryError | None = None
    for name, kind in kinds.items():
        try:
            kind.load(root / name).digest()
        except DefectoryError as error:
            require_line(error)
            refused = error
    read_marker(root / "data")
    is_ours(root / "data")
    read_manifest(root / "data")
    dataset = Dataset.load(root / "data" / MANIFEST)
    check_dataset(root / "data", dataset)
    if rng.random() < 0.2:
        write_contact_sheet(root / "data", dataset, root / "sheet.png", per_class=2)
        (root / "sheet.png").unlink()
    if refused is not None:
        raise refused


def base(root: Path) -> Path:
    """A base folder with the embedded base's settings and tokenizer, and weights of a few bytes."""
    from safetensors.numpy import save_file

    from defectory.engine.backbones.known import resolve_base

    source = resolve_base("embedded")
    for path in sorted(source.rglob("*.json")):
        name = path.relative_to(source).as_posix()
        if path.name != "digests.json" and not name.startswith("controlnet/"):
            sets.write(root / name, path.read_bytes())
    for part in ("unet", "vae", "text_encoder"):
        for stem in ("diffusion_pytorch_model", "model"):
            if any((source / part).glob(f"{stem}*")):
                save_file(
                    {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)},
                    root / part / f"{stem}.safetensors",
                )
    return root


def verify_base(root: Path, rng: random.Random) -> None:
    """Verify the base."""
    from defectory.engine.backbones.verify import verify

    verify(root)


def masks_of_experts(root: Path) -> Path:
    """A folder of masks per class, and regions."""
    for n in range(3):
        sets.write(root / "expert" / sets.NAMES[n % 2] / f"m{n}.png", sets.mask(n))
    sets.write(root / "regions" / "r.png", sets.mask(2))
    sets.write(root / "colours.csv", "name,colour\nscratch,#dc143c\ndent,0 90 200\n")
    sets.write(root / "colours.json", json.dumps({"scratch": [220, 20, 60], "dent": "#005ac8"}))
    sets.write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nscratch:220,20,60::\ndent:0,90,200::\n")
    return root


def read_masks_of_experts(root: Path, rng: random.Random) -> None:
    """Read experts' masks, a region and tables of colours."""
    from defectory.artifacts.annotation import Category, Instance
    from defectory.artifacts.plan import MaskBank, MaskBankEntry
    from defectory.errors import DefectoryError
    from defectory.formats.colours import load_colour_table
    from defectory.masks.expert import read_folder
    from defectory.rle import encode
    from defectory.stages.parts.regions import load_region

    categories = tuple(Category(id=i, name=name) for i, name in enumerate(sets.NAMES, start=1))
    bank = MaskBank(
        split_digest="d",
        entries=tuple(
            MaskBankEntry(
                id=f"m{i}",
                tile_id="t",
                image_id=1,
                category_id=i,
                mask=Instance(category_id=i, rle=encode(sets.mask(i))),
            )
            for i in (1, 2)
        ),
    )
    refused: DefectoryError | None = None
    calls: list[Callable[[], object]] = [
        lambda path=path: load_colour_table(path) for path in sorted(root.glob("*.*")) if path.is_file()
    ]
    calls += [
        lambda: load_region(root / "regions" / "r.png", sets.SIZE_HW),
        lambda: read_folder(root / "expert", bank=bank, categories=categories, scale=1.0, tile_px=36),
    ]
    for call in calls:
        try:
            call()
        except DefectoryError as error:
            require_line(error)
            refused = error
    if refused is not None:
        raise refused


TARGETS: tuple[Target, ...] = (
    *(
        Target(name=f"load/{name}", make=make, read=load_set(name.split("/")[0]), weight=4)
        for name, make in sets.SETS.items()
    ),
    *(Target(name=f"use/{name}", make=make, read=use_set) for name, make in sets.SETS.items()),
    *(image_file(name) for name in sets.images()),
    Target(name="project", make=project, read=read_project, weight=12),
    Target(name="values", make=values, read=read_values, weight=10),
    Target(name="base", make=base, read=verify_base, weight=6),
    Target(name="masks", make=masks_of_experts, read=read_masks_of_experts, weight=6),
)
