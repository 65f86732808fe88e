"""Checks values against the types of settings, before the sections' own checks. Knows no section."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin

Kind = Literal["text", "number", "switch", "list", "nothing"]
MAX_TEXT = 4096
MAX_NAME_BYTES = 255
MAX_LIST = 10_000
MAX_SEED = 2**32 - 1
MAX_COUNT = 10**9
PATHS = frozenset(
    {
        "out",
        "base",
        "data.path",
        "data.image_root",
        "data.defect_free",
        "data.index",
        "data.class_colours",
        "masks.expert",
        "masks.regions",
        "drivers.drawings",
        "synthesis.also_controls",
        "study.out",
        "study.transfer_to",
    }
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting: its dotted key, default (None if required or off), meaning, and accepted kinds of value."""

    key: str
    default: Any
    meaning: str
    takes: frozenset[Kind]


def takes_of(annotation: Any) -> frozenset[Kind]:
    """Return the kinds of value that a field of this type accepts; empty if unknown."""
    if annotation is None or annotation is type(None):
        return frozenset({"nothing"})
    if annotation is bool:
        return frozenset({"switch"})
    if annotation in (int, float):
        return frozenset({"number"})
    if annotation is str:
        return frozenset({"text"})
    origin = get_origin(annotation)
    if origin is Literal:
        kinds = [takes_of(type(value)) for value in get_args(annotation)]
    elif origin in (Union, types.UnionType):
        kinds = [takes_of(part) for part in get_args(annotation)]
    elif origin in (tuple, list):
        return frozenset({"list"})
    else:
        return frozenset()
    return frozenset[Kind]().union(*kinds)


def problem_of(value: object, setting: Setting) -> str | None:
    """Return the problem with a setting's value, worded to follow its name; None if the value is fine."""
    kind = _kind_of(value)
    if kind is None:
        return "is neither text, number, switch nor list"
    # if both text and numbers are accepted, the section checks the text
    if setting.takes and kind not in setting.takes and not {"text", "number"} <= setting.takes:
        if kind == "nothing":
            return f"is empty where {_named(setting)} is needed"
        return f"must be {_named(setting)}"
    if isinstance(value, list):
        if len(value) > MAX_LIST:
            return f"holds {len(value)} values, more than {MAX_LIST}"
        return next((found for found in (_of_one(item, setting) for item in value) if found is not None), None)
    return _of_one(value, setting)


def _named(setting: Setting) -> str:
    """Describe what a setting accepts. For integers the text ends like pydantic's, with `valid integer`."""
    if "number" in setting.takes and not setting.takes & {"text", "list", "switch"}:
        return "a valid integer" if isinstance(setting.default, int) else "a valid number"
    words = {"text": "text", "number": "a number", "switch": "true or false", "list": "a list"}
    return " or ".join(words[kind] for kind in ("switch", "number", "text", "list") if kind in setting.takes)


def _kind_of(value: object) -> Kind | None:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list | tuple) else None


def _of_one(value: object, setting: Setting) -> str | None:
    if isinstance(value, str):
        return _of_text(value, setting)
    if isinstance(value, Mapping):
        return _of_table(cast(Mapping[object, object], value), setting)
    if isinstance(value, bool):
        return "must be text or a number" if "list" in setting.takes else None
    if isinstance(value, float):
        if not math.isfinite(value):
            return "is not a finite number"
        return f"is larger than {MAX_COUNT:.0e}" if abs(value) > MAX_COUNT else None
    if isinstance(value, int):
        return _of_integer(value, setting.key.rpartition(".")[2])
    return None


def _of_table(values: Mapping[object, object], setting: Setting) -> str | None:
    """Return the problem with a table in a list of tables; the section checks its keys and kinds."""
    for name, value in values.items():
        within = Setting(key=f"{setting.key}.{name}", default=None, meaning="", takes=frozenset())
        found = _of_one(value, within)
        if found is not None:
            return f"{name} {found}"
    return None


def _of_integer(value: int, name: str) -> str | None:
    if name in ("seed", "seeds"):
        return None if 0 <= value <= MAX_SEED else f"must be from 0 to {MAX_SEED}"
    if abs(value) > MAX_COUNT:
        return f"is larger than {MAX_COUNT}"
    return None


def _of_text(value: str, setting: Setting) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds bytes that are not UTF-8"
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        return "holds a control character"
    if len(value) > MAX_TEXT:
        return f"has {len(value)} characters, more than {MAX_TEXT}"
    if not value.strip() and setting.default != "":
        return "is empty"
    # in a list of tables, `path` is the setting's path
    if {setting.key, setting.key.removesuffix(".path")} & PATHS or setting.key == "name":
        parts = value.replace("\\", "/").split("/")
        if max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
            return f"holds a name of more than {MAX_NAME_BYTES} bytes"
    return None
