"""Describes a base without loading it: its parts, their parameters and sizes. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from defectory.engine.backbones.files import weights_variant
from defectory.engine.backbones.headers import Header, read_header
from defectory.engine.backbones.others import classes_of, index_of


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """A part of a base.

    Attributes:
        name: `unet`, `vae`, ...
        kind: its class in diffusers or transformers.
        num_parameters: numbers in its weights; 0 if it has none.
        num_bytes: of its folder's files that are loaded.
        dtype: of most of its numbers, for example `F16`; empty if it has none.
    """

    name: str
    kind: str
    num_parameters: int
    num_bytes: int
    dtype: str


def parts_of(folder: Path) -> tuple[PartInfo, ...]:
    """Return the parts that a base's index names and that are there, from the headers of their weights.

    Raises:
        WeightsError: the folder is no base, or a file is truncated or a pickle.
    """
    classes = classes_of(index_of(folder))
    if (folder / "controlnet").is_dir():
        classes.setdefault("controlnet", "ControlNetModel")
    return tuple(_part(folder / name, kind) for name, kind in sorted(classes.items()) if (folder / name).is_dir())


def _part(folder: Path, kind: str) -> PartInfo:
    variant = weights_variant(folder)
    weights = [path for path in sorted(folder.glob("*.safetensors")) if variant or _is_loaded(path)]
    headers = [read_header(path) for path in weights]
    texts = [path for path in folder.iterdir() if path.suffix in (".json", ".txt")]
    return PartInfo(
        name=folder.name,
        kind=kind,
        num_parameters=sum(header.num_parameters for header in headers),
        num_bytes=sum(path.stat().st_size for path in [*weights, *texts]),
        dtype=_dtype(headers),
    )


def _is_loaded(path: Path) -> bool:
    """Check that a file is not of a variant, of which published bases keep several beside each other."""
    return not any(f".{variant}" in path.name for variant in ("fp16", "non_ema"))


def _dtype(headers: list[Header]) -> str:
    counts: Counter[str] = Counter()
    for header in headers:
        for name, shape in header.shapes.items():
            counts[header.dtypes[name]] += prod(shape)
    return counts.most_common(1)[0][0] if counts else ""
