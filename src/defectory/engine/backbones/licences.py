"""Finds the licence of a base, and the files in its folder that state it. Imports no torch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from defectory.engine.backbones.chosen import LICENCE_FILE
from defectory.engine.backbones.files import read_json
from defectory.engine.backbones.known import KNOWN_BASES, KnownBase
from defectory.engine.backbones.places import SOURCE_NAME
from defectory.errors import WeightsError

UNKNOWN = "not stated; ask its owner before you use it"


@dataclass(frozen=True, kw_only=True)
class BaseLicence:
    """The licence of a base.

    Attributes:
        name: of the base, for people: `owner/model`, a known name, or its folder's name.
        hub_id: `owner/model` on a model hub; None if it is not known.
        identifier: of the licence, as model hubs have it, for example `apache-2.0`; None if it is not known.
        words: the licence with its restrictions, as far as it is known.
        files: in the base's folder that state it.
    """

    name: str
    hub_id: str | None
    identifier: str | None
    words: str
    files: tuple[Path, ...]


def origin_of(base: str, folder: Path) -> tuple[KnownBase | None, dict[str, object]]:
    """Return the known base that a base is, if any, and what its `source.json` says of its origin.

    Args:
        base: as in `base` of the project.
        folder: that it resolves to.
    """
    source: dict[str, object] = {}
    with contextlib.suppress(WeightsError):
        if (folder / SOURCE_NAME).is_file():
            source = read_json(folder / SOURCE_NAME)
    hub_id = source.get("hub_id")
    named = (known for known in KNOWN_BASES if base == known.name or (hub_id and known.hub_id == hub_id))
    return next(named, None), source


def licence_of(base: str, folder: Path) -> BaseLicence:
    """Return the licence of a base.

    Args:
        base: as in `base` of the project.
        folder: that it resolves to.
    """
    known, source = origin_of(base, folder)
    stated, hub_id = source.get("licence"), source.get("hub_id")
    files = tuple(sorted(path for path in folder.iterdir() if path.is_file() and LICENCE_FILE.fullmatch(path.name)))
    if known is not None:
        return BaseLicence(
            name=known.hub_id or known.name,
            hub_id=known.hub_id,
            identifier=known.licence_id,
            words=known.licence,
            files=files,
        )
    words = f"{stated} (as its owner states; read it for restrictions of use)" if stated else UNKNOWN
    return BaseLicence(
        name=str(hub_id or Path(base).name),
        hub_id=str(hub_id) if hub_id else None,
        identifier=str(stated) if stated else None,
        words=words,
        files=files,
    )
