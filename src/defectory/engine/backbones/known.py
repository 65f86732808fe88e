"""Lists the bases known by name, and resolves a name or a path to a folder. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from defectory.engine.backbones import places
from defectory.errors import WeightsError

EMBEDDED = "embedded"
PUT_FOLDER = (
    "copy the model's whole folder (model_index.json, unet/, vae/ ...) to this machine, set `base` to its path, and "
    "check it with `defectory base verify PATH`"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class KnownBase:
    """A base with a name.

    Attributes:
        name: that `base` may be set to.
        description: one line.
        licence: of the weights, with its restrictions of use.
        licence_id: the same, as model hubs name it.
        tile_px: side of its native tiles in pixels.
        prediction_type: what its denoiser predicts.
        hub_id: `owner/model` on the model hub; None if the base is shipped.
        revision: branch, tag or commit there. `main` is whatever its owner publishes now; the commit that was pulled
            is written down beside the weights.
        digest: if pinned; None if the weights come from outside.
    """

    name: str
    description: str
    licence: str
    licence_id: str
    tile_px: int
    prediction_type: str = "epsilon"
    hub_id: str | None = None
    revision: str = "main"
    digest: str | None = None


_RESTRICTIONS = "use-based restrictions (its Attachment A) travel with the weights and with what is tuned from them"
KNOWN_BASES = (
    KnownBase(
        name=EMBEDDED,
        description="Defectory's own small base, trained on procedural images alone; shipped in the package",
        licence="Apache-2.0",
        licence_id="apache-2.0",
        tile_px=128,
        prediction_type="v_prediction",
    ),
    KnownBase(
        name="sd15",
        description="Stable Diffusion 1.5",
        licence=f"CreativeML Open RAIL-M: {_RESTRICTIONS}",
        licence_id="creativeml-openrail-m",
        tile_px=512,
        hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    KnownBase(
        name="sd21",
        description="Stable Diffusion 2.1 for 768 px",
        licence=f"CreativeML Open RAIL++-M: {_RESTRICTIONS}",
        licence_id="openrail++",
        tile_px=768,
        prediction_type="v_prediction",
        hub_id="stabilityai/stable-diffusion-2-1",
    ),
    KnownBase(
        name="sdxl",
        description="Stable Diffusion XL 1.0",
        licence=f"CreativeML Open RAIL++-M: {_RESTRICTIONS}",
        licence_id="openrail++",
        tile_px=1024,
        hub_id="stabilityai/stable-diffusion-xl-base-1.0",
    ),
)


def embedded_folder() -> Path:
    """Return the folder of the shipped base."""
    return Path(str(files("defectory.engine.backbones") / "weights"))


def is_known(name: str) -> bool:
    """Check whether a base is known by this name."""
    return known_base(name) is not None


def known_base(name: str) -> KnownBase | None:
    """Return the base with this name; None if there is none."""
    return next((base for base in KNOWN_BASES if name == base.name), None)


def resolve_base(name_or_path: str, *, bases_folder: Path | None = None) -> Path:
    """Resolve a user's base to a folder. Nothing is downloaded.

    A name is looked up among the pulled bases, then in the cache of `huggingface_hub`.

    Args:
        name_or_path: `embedded`, another known name, `owner/model`, or the path of a folder in Stable Diffusion layout
            or of a single `.safetensors` file in the original layout, which is converted once.
        bases_folder: folder of pulled bases, one subfolder per name; None takes the user's (`DEFECTORY_BASES`).

    Raises:
        WeightsError: no such folder, a file that is no checkpoint of 1.x, 2.x or XL, or a base that is not on
            this machine, or not wholly.
    """
    if name_or_path == EMBEDDED:
        return embedded_folder()
    bases = places.bases_folder() if bases_folder is None else bases_folder
    known = known_base(name_or_path)
    if known is not None:
        folder = _on_this_machine(known.name, known.hub_id, bases)
        if folder is not None:
            return folder
        raise WeightsError(
            name_or_path,
            "known by name, but its weights are not on this machine, and nothing is downloaded here",
            f"`defectory base pull {name_or_path}` downloads it, or {PUT_FOLDER}",
        )
    path = Path(name_or_path).expanduser()
    if path.is_file():
        from defectory.engine.backbones.single_file import resolve_checkpoint

        return resolve_checkpoint(path, bases)
    if not path.is_dir():
        hub_id = hub_id_of(name_or_path)
        folder = None if hub_id is None else _on_this_machine(hub_id, hub_id, bases)
        if folder is not None:
            return folder
        if hub_id is not None:
            raise WeightsError(
                path,
                f"no such folder, and {hub_id} is not on this machine; nothing is downloaded here",
                f"`defectory base pull {hub_id}` downloads it, or {PUT_FOLDER}",
            )
        names = ", ".join(base.name for base in KNOWN_BASES)
        raise WeightsError(path, f"neither a folder nor a known base ({names})", "check the path")
    return path


def _on_this_machine(name: str, hub_id: str | None, bases: Path) -> Path | None:
    """Return the folder of a base that was pulled or that the hub's cache holds; None if there is none.

    Raises:
        WeightsError: only a part of it is in the cache.
    """
    for pulled in dict.fromkeys((name, hub_id or name)):
        folder = places.pulled_folder(pulled, bases=bases)
        if folder is not None:
            return folder
    folder = None if hub_id is None else places.cached_folder(hub_id)
    if folder is None:
        return None
    try:
        places.require_all_parts(folder)
    except WeightsError as error:
        raise WeightsError(
            name,
            f"only a part of it is in the hub's cache ({error.where}: {error.found})",
            f"`defectory base pull {name}` makes it whole",
        ) from None
    return folder


def hub_id_of(name_or_path: str) -> str | None:
    """Return the `owner/model` that a missing path ends in; None if it cannot be a name on a model hub.

    A project makes its base's path absolute, so the name is looked for at the end. Of a mistyped path the folder above
    exists; of a name on a hub it does not.
    """
    path = Path(name_or_path).expanduser()
    name = "/".join(path.parts[-2:])
    return name if _HUB_NAME.fullmatch(name) and not path.parent.exists() else None
