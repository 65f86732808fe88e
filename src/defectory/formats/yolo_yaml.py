"""YOLO's `data.yaml`: class names by number and the folders of the subsets, read as text without expanding anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from defectory.errors import AnnotationError
from defectory.textfile import read_text_file

MAX_CHARACTERS = 500_000
MAX_ALIASES = 8
MAX_DEPTH = 12
MAX_CLASSES = 20_000
Node = str | list[Any] | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataYaml:
    """The content of a `data.yaml`."""

    path: Path
    names: Mapping[int, str]
    stated_count: int | None
    """`nc`."""
    root: str
    """`path`, or empty."""
    subsets: Mapping[str, tuple[str, ...]]
    """Entries of `train`, `val` and `test`."""


def load_data_yaml(path: Path) -> DataYaml:
    """Load a `data.yaml`.

    Raises:
        AnnotationError: it is not a YAML mapping, is too large, nested or full of aliases, or its `names` are not class
            names by number.
    """
    content = load_yaml_text(path)
    if not isinstance(content, dict):
        raise AnnotationError(
            path,
            f"contains {_kind(content)}, but a mapping with 'names' is expected",
            "give the data.yaml of a YOLO data set",
        )
    if "names" not in content:
        raise AnnotationError(path, "no class list 'names'", "give the data.yaml of a YOLO segmentation data set")
    names = names_of(content["names"], path)
    count = content.get("nc")
    if count is not None and not (isinstance(count, str) and count.isascii() and count.isdigit() and len(count) < 8):
        raise AnnotationError(
            path, f"nc is {str(count)[:40]!r}, but a whole number is expected", "correct nc or leave it out"
        )
    root = content.get("path", "")
    if not isinstance(root, str):
        raise AnnotationError(path, f"path is {_kind(root)}, but a folder is expected", "correct path or leave it out")
    subsets: dict[str, tuple[str, ...]] = {}
    for key, subset in (("train", "train"), ("val", "val"), ("valid", "val"), ("validation", "val"), ("test", "test")):
        value = content.get(key)
        if value is None or value in ("", "null", "~", []):
            continue
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise AnnotationError(
                path,
                f"{key} is {_kind(value)}, but a folder, a list of folders or a list file is expected",
                f"correct {key}",
            )
        subsets[subset] = (*subsets.get(subset, ()), *entries)
    return DataYaml(
        path=path,
        names=names,
        stated_count=None if count is None else int(count),
        root="" if root in ("null", "~") else root,
        subsets=subsets,
    )


def names_of(value: Node, where: object) -> dict[int, str]:
    """Return class names by number from a list, a mapping of numbers to names, or the name of the only class.

    Raises:
        AnnotationError: it is something else, or a name is empty or occurs twice.
    """
    if isinstance(value, str):
        pairs: list[tuple[str, Any]] = [("0", value)]
    elif isinstance(value, list):
        pairs = [(str(number), name) for number, name in enumerate(value)]
    else:
        pairs = list(value.items())
    if not pairs or len(pairs) > MAX_CLASSES:
        raise AnnotationError(where, f"names lists {len(pairs)} classes", "list the class names")
    names: dict[int, str] = {}
    for key, name in pairs:
        if not (key.isascii() and key.isdigit() and len(key) < 8):
            raise AnnotationError(
                where,
                f"names has {key[:40]!r} where the number of a class is expected",
                "write names as a list, or as {0: name, 1: name}",
            )
        if not isinstance(name, str) or not name.strip() or name in ("null", "~"):
            found = f"{name!r:.40}" if isinstance(name, str) else _kind(name)
            raise AnnotationError(
                where, f"names: class {key} is {found}, but a name is expected", "give each class a name"
            )
        if int(key) in names:
            raise AnnotationError(where, f"names has the class {int(key)} twice", "give each class once")
        names[int(key)] = name.strip()
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise AnnotationError(where, f"names has {twice[0][:80]!r} twice", "give each class a name of its own")
    return names


def load_yaml_text(path: Path) -> Node:
    """Load a YAML file with every scalar as text; nothing is constructed, and aliases are few and not copied.

    Raises:
        AnnotationError: it is too large, too deep, has too many aliases or a key twice, or is not YAML.
    """
    text = read_text_file(path).text
    if len(text) > MAX_CHARACTERS:
        raise AnnotationError(path, f"is {len(text):,} characters long", "give the data.yaml of a YOLO data set")
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        _refuse_odd_structure(path, yaml.parse(text, Loader=loader))
        return _built(path, yaml.parse(text, Loader=loader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or type(error).__name__).split("\n")[0]
        line = "" if mark is None else f", line {mark.line + 1}"
        row = "" if mark is None or mark.line >= len(text.split("\n")) else text.split("\n")[mark.line]
        hint = "indent with spaces, not tabs" if "\t" in row else "correct the file"
        raise AnnotationError(path, f"is not YAML ({problem[:120]}{line})", hint) from None


def _refuse_odd_structure(path: Path, events: Iterator[Any]) -> None:
    """Check the structure only, before anything is built."""
    aliases = depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if aliases > MAX_ALIASES:
            raise AnnotationError(path, f"more than {MAX_ALIASES} aliases (*name)", "write the values out")
        if depth > MAX_DEPTH:
            raise AnnotationError(
                path, f"is nested more than {MAX_DEPTH} deep", "give the data.yaml of a YOLO data set"
            )


def _built(path: Path, events: Iterator[Any]) -> Node:
    """Build lists, mappings and texts from events; the structure has been checked."""
    anchors: dict[str, Node] = {}

    def node(event: Any) -> Node:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise AnnotationError(
                    path, f"the alias *{event.anchor[:40]} refers to nothing before it", "write the value out"
                )
            return anchors[event.anchor]
        value: Node
        if isinstance(event, yaml.ScalarEvent):
            value = event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(events), yaml.SequenceEndEvent):
                value.append(node(inner))
        else:
            value = {}
            while not isinstance(inner := next(events), yaml.MappingEndEvent):
                key = node(inner)
                if not isinstance(key, str):
                    raise AnnotationError(path, "a key that is a list or a mapping", "write plain keys")
                if key in value:
                    raise AnnotationError(path, f"has the key {key[:40]!r} twice", "leave one of them")
                value[key] = node(next(events))
        anchor = getattr(event, "anchor", None)
        if anchor:
            anchors[anchor] = value
        return value

    for event in events:
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent | yaml.AliasEvent):
            return node(event)
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}" if value else "nothing"
    return "a list" if isinstance(value, list) else "a mapping"
