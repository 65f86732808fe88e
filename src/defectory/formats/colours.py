"""Tables of colours and class names for masks (CVAT's labelmap.txt, class_dict.csv, JSON), and lists of class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectory.errors import AnnotationError
from defectory.formats.fields import shortened
from defectory.formats.tables import Row, read_header, read_table
from defectory.textfile import read_json_file, read_text_file

Rgb = tuple[int, int, int]
BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_", "bg", "unlabeled", "unlabelled"})
IGNORE_NAMES = frozenset({"__ignore__", "_ignore_", "ignore", "void", "__void__"})
TABLE_NAMES = (
    "labelmap.txt",
    "label_map.txt",
    "class_dict.csv",
    "class_colors.csv",
    "class_colours.csv",
    "colormap.csv",
    "labelmap.json",
)
LIST_NAMES = ("_classes.csv", "classes.txt", "class_names.txt", "labels.txt", "obj.names", "names.txt")
MAX_CLASSES = 4096
_COLOUR_COLUMNS = {
    "name": ("name", "class", "label", "class_name", "category"),
    "red": ("r", "red"),
    "green": ("g", "green"),
    "blue": ("b", "blue"),
    "colour": ("colour", "color", "rgb", "hex", "color_rgb"),
}


@dataclass(frozen=True, kw_only=True)
class ColourTable:
    """The meaning of each mask colour, in the order of the table."""

    path: Path
    names: Mapping[Rgb, str]
    background: frozenset[Rgb]
    ignored: frozenset[Rgb]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the class names without the background."""
        return tuple(dict.fromkeys(self.names.values()))


def load_colour_table(path: Path) -> ColourTable:
    """Load a table of colours.

    JSON: `{"scratch": "#dc143c"}` or `{"scratch": [220, 20, 60]}`, or a list of objects with `name` and `color`. CSV:
    columns name and r, g, b, or name and colour. Text: lines `name:220,20,60::` as CVAT writes them.

    Raises:
        AnnotationError: the file is none of these, a colour is invalid, or one colour stands for two classes.
    """
    suffix = path.suffix.lower()
    pairs = _of_json(path) if suffix == ".json" else _of_csv(path) if suffix in (".csv", ".tsv") else _of_labelmap(path)
    names: dict[Rgb, str] = {}
    background: set[Rgb] = set()
    ignored: set[Rgb] = set()
    for where, name, colour in pairs:
        if name.lower() in BACKGROUND_NAMES:
            background.add(colour)
        elif name.lower() in IGNORE_NAMES:
            ignored.add(colour)
        elif names.setdefault(colour, name) != name:
            raise AnnotationError(
                where, f"{hex_of(colour)} is both {names[colour]!r} and {name!r}", "give each class a colour of its own"
            )
    clash = next((colour for colour in names if colour in background | ignored), None)
    if clash is not None:
        raise AnnotationError(
            path, f"{hex_of(clash)} is both {names[clash]!r} and background", "give each class a colour of its own"
        )
    if not names:
        raise AnnotationError(path, "names no class with a colour", "give lines such as 'scratch:220,20,60::'")
    if (0, 0, 0) not in names and (0, 0, 0) not in ignored:
        background.add((0, 0, 0))
    return ColourTable(path=path, names=names, background=frozenset(background), ignored=frozenset(ignored))


def find_colour_table(folders: Iterable[Path]) -> ColourTable | None:
    """Return the colour table with a usual name in one of the folders, or None.

    Raises:
        AnnotationError: there is one, but it is bad.
    """
    for folder in folders:
        for name in TABLE_NAMES:
            if (folder / name).is_file():
                return load_colour_table(folder / name)
    return None


def find_value_names(folders: Iterable[Path]) -> dict[int, str] | None:
    """Return the names of mask values from a class list in one of the folders, or None.

    Values count from 0 if the list begins with a background, otherwise from 1; lines `3: dent` and Roboflow's
    `_classes.csv` state the value.

    Raises:
        AnnotationError: there is a list, but it is bad.
    """
    for folder in folders:
        for name in LIST_NAMES:
            path = folder / name
            if path.is_file():
                names = (
                    _stated_values(path)
                    if path.suffix == ".csv"
                    else value_names_of(read_text_file(path).text.split("\n"), path)
                )
                if names:
                    return names
    return None


def value_names_of(lines: Sequence[str], where: object) -> dict[int, str]:
    """Return the name of each value from the lines of a class list, without background and ignored values.

    Raises:
        AnnotationError: a name occurs twice, or the list is too long.
    """
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(listed) > MAX_CLASSES:
        raise AnnotationError(where, f"{len(listed)} classes", f"give at most {MAX_CLASSES}")
    stated = [re.fullmatch(r"(\d{1,5})\s*[:=,;\t ]\s*(\S.*)", line) for line in listed]
    if listed and all(stated):
        names = {int(found[1]): found[2].strip() for found in stated if found is not None}
    else:
        # labelme's list begins with the ignored value at -1, followed by the background at 0
        first = next((place for place, name in enumerate(listed) if name.lower() in BACKGROUND_NAMES), -1)
        names = (
            {place - first: name for place, name in enumerate(listed)}
            if first >= 0
            else dict(enumerate(listed, start=1))
        )
    names = {v: name for v, name in names.items() if name.lower() not in BACKGROUND_NAMES | IGNORE_NAMES and v > 0}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise AnnotationError(where, f"names the class {shortened(twice[0])!r} twice", "give each class once")
    return names


def parse_colour(value: Any, where: object) -> Rgb:
    """Return a colour from `#rrggbb`, `r,g,b` or three numbers.

    Raises:
        AnnotationError: the value is none of these.
    """
    if isinstance(value, str):
        text = value.strip().strip("()[]")
        short = re.fullmatch(r"#?([0-9a-fA-F]{6})(?:[fF]{2})?", text)
        if short:
            return int(short[1][:2], 16), int(short[1][2:4], 16), int(short[1][4:], 16)
        value = re.split(r"[,\s]+", text)
    if isinstance(value, list | tuple) and len(value) in (3, 4):
        numbers = [_byte(part) for part in value[:3]]
        if None not in numbers:
            red, green, blue = (number for number in numbers if number is not None)
            return red, green, blue
    raise AnnotationError(
        where, f"{str(value)[:40]!r} is not a colour", "write colours as '#dc143c' or as three numbers from 0 to 255"
    )


def hex_of(colour: Rgb) -> str:
    """Return a colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _byte(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}", value.strip()):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255 else None


def _of_labelmap(path: Path) -> list[tuple[str, str, Rgb]]:
    pairs: list[tuple[str, str, Rgb]] = []
    for number, line in enumerate(read_text_file(path).text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}:{number}"
        # a class name may contain a colon
        found = re.fullmatch(r"\s*(.+?)\s*:\s*(\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}|#[0-9a-fA-F]{6})\s*(?::.*)?", line)
        if found is None:
            raise AnnotationError(where, f"{line.strip()[:40]!r} is not 'name:r,g,b::'", "export the label map again")
        pairs.append((where, found[1], parse_colour(found[2], where)))
    return pairs


def _of_csv(path: Path) -> list[tuple[str, str, Rgb]]:
    table = read_table(path, _COLOUR_COLUMNS, required=("name",))
    split = all(table.has(role) for role in ("red", "green", "blue"))
    if not split and not table.has("colour"):
        raise AnnotationError(path, "has no columns r, g, b and no column colour", "name the columns name, r, g, b")

    def colour(row: Row) -> Rgb:
        value = [row.get("red"), row.get("green"), row.get("blue")] if split else row.get("colour")
        return parse_colour(value, row.where)

    return [(row.where, row.get("name"), colour(row)) for row in table.rows]


def _of_json(path: Path) -> list[tuple[str, str, Rgb]]:
    content = read_json_file(path)
    if isinstance(content, dict):
        listed = list(content.items())
    elif isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        listed = [
            (
                entry.get("name", entry.get("label", entry.get("title"))),
                entry.get("color", entry.get("colour", entry.get("rgb"))),
            )
            for entry in content
        ]
    else:
        raise AnnotationError(
            path, "is not a colour table", 'give {"scratch": "#dc143c"} or a list of objects with name and color'
        )
    pairs: list[tuple[str, str, Rgb]] = []
    for name, colour in listed:
        if not isinstance(name, str) or not name.strip():
            raise AnnotationError(path, f"{str(name)[:40]!r} is not a class name", "give each class a name")
        if isinstance(colour, dict):
            colour = colour.get("color", colour.get("colour"))
        where = f"{path}: {name.strip()[:40]}"
        pairs.append((where, name.strip(), parse_colour(colour, where)))
    return pairs


def _stated_values(path: Path) -> dict[int, str]:
    if "pixel value" not in read_header(path):
        return {}
    table = read_table(path, {"value": ("pixel_value",), "name": ("class", "name")}, required=("value", "name"))
    names: dict[int, str] = {}
    for row in table.rows:
        if not re.fullmatch(r"\d{1,5}", row.get("value")):
            raise AnnotationError(row.where, f"pixel value {row.get('value')[:40]!r}", "give a whole number")
        if int(row.get("value")) > 0:
            names[int(row.get("value"))] = row.get("name")
    return names
