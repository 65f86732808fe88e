"""Fields of other tools' files, each converted to one type.

A value with only one possible meaning is accepted; any other value raises a one-line error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from defectory.errors import AnnotationError
from defectory.terminal import printable

Entry = Mapping[str, Any]
MAX_NUMBER = 1e9
"""No coordinate, size or count in a usable file is larger."""
_TRUE, _FALSE = frozenset({"1", "true"}), frozenset({"0", "false", ""})


def described(value: object) -> str:
    """Return a description of a value for messages: `a list`, `null`, `the text 'abc'`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text '{shortened(value)}'"
    try:
        return f"the number {shortened(str(value))}"
    except ValueError:  # a whole number with more digits than Python writes out
        return "a number of thousands of digits"


def shortened(text: str, limit: int = 60) -> str:
    """Return a text as one printable line of at most `limit` characters."""
    line = printable(text[: limit + 1])
    return line if len(line) <= limit else line[:limit] + "..."


def entry_of(value: object, where: object, what: str = "entry") -> Entry:
    """Return an object of a JSON file.

    Raises:
        AnnotationError: the value is something else.
    """
    if not isinstance(value, dict):
        raise AnnotationError(
            where, f"{what} is {described(value)}, but an object is expected", "export the annotations again"
        )
    return cast("Entry", value)


def list_of(entry: Entry, name: str, where: object) -> list[Any]:
    """Return a field that is a list; an empty list if it is missing or null.

    Raises:
        AnnotationError: it is something else.
    """
    value = entry.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise AnnotationError(
            where, f"{name} is {described(value)}, but a list is expected", "export the annotations again"
        )
    return cast("list[Any]", value)


def identity_of(entry: Entry, name: str, where: object) -> str | None:
    """Return an id as text, so that 7, 7.0 and "7" are one id; None if it is missing or null.

    Raises:
        AnnotationError: it is neither text nor a whole number.
    """
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_NUMBER:
        return str(int(value))
    raise AnnotationError(
        where, f"{name} is {described(value)}, but a number or text is expected", "export the annotations again"
    )


def text_of(entry: Entry, name: str, where: object) -> str | None:
    """Return a text field; a number becomes text; None if it is missing or null.

    Raises:
        AnnotationError: it is something else.
    """
    value = entry.get(name)
    return value if isinstance(value, str) else identity_of(entry, name, where)


def group_of(entry: Entry, name: str, where: object) -> str | None:
    """Return an entry's group as text: 0 and false are groups; None if it is missing, null or empty.

    Raises:
        AnnotationError: it is neither text, number nor truth value.
    """
    value = entry.get(name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return str(value)
    return identity_of(entry, name, where) or None


def flag_of(entry: Entry, name: str, where: object) -> bool:
    """Return a truth value: true, false, 0, 1 or these as text; False if it is missing, null or empty.

    Raises:
        AnnotationError: it is something else.
    """
    value = entry.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    raise AnnotationError(where, f"{name} is {described(value)}, but 0 or 1 is expected", f"correct {name}")


def number_of(entry: Entry, name: str, where: object) -> float | None:
    """Return a finite number, given as number or text; None if it is missing, null or empty.

    Raises:
        AnnotationError: it is something else, or too large.
    """
    value = entry.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_NUMBER:
        raise AnnotationError(where, f"{name} is {described(value)}, but a number is expected", f"correct {name}")
    return number


def length_px_of(entry: Entry, name: str, where: object) -> int | None:
    """Return a width or height in whole pixels; None if it is missing, null or empty.

    Raises:
        AnnotationError: it is not a whole number above 0.
    """
    number = number_of(entry, name, where)
    if number is not None and (number < 1 or not number.is_integer()):
        raise AnnotationError(
            where,
            f"{name} is {described(entry.get(name))}, but a whole number of pixels above 0 is expected",
            f"correct {name}, or leave it out",
        )
    return None if number is None else int(number)


def size_hw_of(entry: Entry, where: object, *, height: str = "height", width: str = "width") -> tuple[int, int] | None:
    """Return the stated height and width; None if either is missing, so that the image is measured.

    Raises:
        AnnotationError: as for `length_px_of`.
    """
    height_px, width_px = length_px_of(entry, height, where), length_px_of(entry, width, where)
    return None if height_px is None or width_px is None else (height_px, width_px)
