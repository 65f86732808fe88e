"""Lists the bases known by name, and resolves a name or a path to a folder. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from defectory.errors import WeightsError

EMBEDDED = "embedded"
PUT_FOLDER = (
    "copy the model's whole folder (model_index.json, unet/, vae/ ...) to this machine, set `base` to its path, and "
    "check it with `defectory base verify PATH`"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class KnownBase:
    """A base with a name: its licence, the side of its native tiles in pixels, and its digest if pinned.

    `digest` is None if the weights come from the user's own copy.
    """

    name: str
    description: str
    licence: str
    tile_px: int
    digest: str | None = None


KNOWN_BASES = (
    KnownBase(
        name=EMBEDDED,
        description="Defectory's own small base, trained on procedural images alone; shipped in the package",
        licence="Apache-2.0",
        tile_px=128,
    ),
    KnownBase(
        name="sd15",
        description="Stable Diffusion 1.5, from your own copy in Stable Diffusion layout",
        licence="CreativeML Open RAIL-M: use-based restrictions travel with the weights and with what is tuned from "
        "them",
        tile_px=512,
    ),
    KnownBase(
        name="sd21",
        description="Stable Diffusion 2.1 (768 px, v-prediction), from your own copy in Stable Diffusion layout",
        licence="CreativeML Open RAIL++-M: use-based restrictions travel with the weights and with what is tuned "
        "from them",
        tile_px=768,
    ),
)


def embedded_folder() -> Path:
    """Return the folder of the shipped base."""
    return Path(str(files("defectory.engine.backbones") / "weights"))


def is_known(name: str) -> bool:
    """Check whether a base is known by this name."""
    return any(base.name == name for base in KNOWN_BASES)


def resolve_base(name_or_path: str, *, bases_folder: Path | None = None) -> Path:
    """Resolve a user's base to a folder.

    Args:
        name_or_path: `embedded`, another known name, or the path of a folder in Stable Diffusion layout.
        bases_folder: folder of named bases on this machine, one subfolder per name; None if there is none.

    Raises:
        WeightsError: no such folder, a single-file checkpoint, or a known base that is not on this machine.
    """
    if name_or_path == EMBEDDED:
        return embedded_folder()
    if is_known(name_or_path):
        folder = None if bases_folder is None else bases_folder / name_or_path
        if folder is not None and folder.is_dir():
            return folder
        raise WeightsError(
            name_or_path,
            "known by name, but its weights are not on this machine, and nothing is downloaded",
            PUT_FOLDER,
        )
    path = Path(name_or_path).expanduser()
    if path.is_file():
        raise WeightsError(
            path,
            "a single file, a folder in Stable Diffusion layout was expected",
            "convert it with diffusers and give the folder",
        )
    if not path.is_dir():
        hub_name = _hub_name(name_or_path)
        if hub_name is not None:
            raise WeightsError(path, f"no such folder, and {hub_name} is not downloaded from a model hub", PUT_FOLDER)
        names = ", ".join(base.name for base in KNOWN_BASES)
        raise WeightsError(path, f"neither a folder nor a known base ({names})", "check the path")
    return path


def _hub_name(name_or_path: str) -> str | None:
    """Return the `owner/model` that a missing path ends in; None if it cannot be a name on a model hub.

    A project makes its base's path absolute, so the name is looked for at the end. Of a mistyped path the folder above
    exists; of a name on a hub it does not.
    """
    path = Path(name_or_path).expanduser()
    name = "/".join(path.parts[-2:])
    return name if _HUB_NAME.fullmatch(name) and not path.parent.exists() else None
