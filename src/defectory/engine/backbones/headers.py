"""Reads the header of a safetensors file: names, dtypes and shapes, no weights. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from defectory.engine.backbones.files import verify_safetensors


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        shapes: of each tensor by name.
        dtypes: of each tensor by name, for example `F16`.
        metadata: free texts by key.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def num_parameters(self) -> int:
        """Return the number of values in all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: Path) -> Header:
    """Check that a safetensors file is whole, and read its header.

    Raises:
        WeightsError: it is truncated, a pickle, or of another kind.
    """
    verify_safetensors(path)
    with open(path, "rb") as stream:
        content = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata = content.pop("__metadata__", None) or {}
    return Header(
        shapes={name: tuple(about["shape"]) for name, about in content.items()},
        dtypes={name: str(about["dtype"]) for name, about in content.items()},
        metadata={str(key): str(value) for key, value in metadata.items()},
    )
