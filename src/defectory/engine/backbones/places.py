"""Finds bases on this machine: pulled ones, and those in the cache of `huggingface_hub`. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from defectory.engine.backbones.files import verify_weights
from defectory.engine.backbones.others import classes_of, index_of

VARIABLE = "DEFECTORY_BASES"
"""Environment variable that names the folder of pulled bases."""
CONVERTED = ".converted"
"""Subfolder of the bases that were converted from single files."""
PARTIAL = ".partial"
"""Subfolder of pulls that are not complete."""
SOURCE_NAME = "source.json"
"""File of a pulled base that says where it comes from."""
_HUB_FOLDER = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<model>[\w.-]+)")


def bases_folder() -> Path:
    """Return the folder of pulled bases: `DEFECTORY_BASES`, else `defectory/bases` in the user's data folder."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "defectory" / "bases"


def pulled_folder(name: str, *, bases: Path) -> Path | None:
    """Return the folder of a pulled base; None if there is none. A pull that is not complete has none.

    Args:
        name: `sd15`, or `owner/model`.
        bases: folder of pulled bases.
    """
    folder = bases / name
    return folder if folder.is_dir() else None


def cached_folder(hub_id: str, *, revision: str = "main") -> Path | None:
    """Return the snapshot of a model in the hub's cache; None if there is none. It may be incomplete.

    `HF_HOME` and `HF_HUB_CACHE` are honoured.

    Args:
        hub_id: `owner/model`.
        revision: branch, tag or commit.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        index = try_to_load_from_cache(hub_id, "model_index.json", revision=revision)
    except HFValidationError:
        return None
    return Path(index).parent if isinstance(index, str) else None


def pulled_names(bases: Path) -> Iterator[str]:
    """Yield the names of all pulled bases, sorted: `name`, or `owner/model`."""
    for first in _folders(bases):
        if (first / "model_index.json").is_file():
            yield first.name
            continue
        for second in _folders(first):
            if (second / "model_index.json").is_file():
                yield f"{first.name}/{second.name}"


def cached_names() -> Iterator[str]:
    """Yield `owner/model` of everything in diffusers' layout in the hub's cache, sorted."""
    from huggingface_hub import constants

    for folder in _folders(Path(constants.HF_HUB_CACHE)):
        match = _HUB_FOLDER.fullmatch(folder.name)
        if match and cached_folder(f"{match['owner']}/{match['model']}") is not None:
            yield f"{match['owner']}/{match['model']}"


def require_all_parts(folder: Path) -> None:
    """Require weights of every network that a base's index names, without reading them; the cache may hold less.

    Raises:
        WeightsError: a part or its weights are missing.
    """
    for part in classes_of(index_of(folder)):
        if part in ("unet", "transformer", "vae") or part.startswith("text_encoder"):
            verify_weights(folder / part)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
