"""CSV tables with any usual delimiter and encoding, columns found by name, and damaged rows reported by number.

Does not depend on any format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defectory.errors import AnnotationError
from defectory.textfile import read_text_file

DELIMITERS = (",", ";", "\t", "|")
MAX_CELL_CHARACTERS = 50_000_000
"""Run lengths of a large mask fill one cell; the module's default limit is 131,072."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its place, for messages, and its cells by role."""

    where: str
    cells: Mapping[str, str]
    fault: AnnotationError | None = None
    """The error of the row, if it is kept anyway."""

    def get(self, role: str) -> str:
        """Return the cell of a role, without outer blanks; empty if the table has no such column."""
        return self.cells.get(role, "")


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a CSV file, and the role of each column."""

    path: Path
    columns: Mapping[str, str]
    """Name of the column of each role."""
    rows: tuple[Row, ...]

    def has(self, role: str) -> bool:
        """Return whether a column has a role."""
        return role in self.columns


def read_header(path: Path) -> tuple[str, ...]:
    """Return the column names of a CSV file in lower case; empty if it is not a readable table.

    Reads only a few kilobytes.
    """
    try:
        if not path.is_file():
            return ()
        with open(path, "rb") as stream:
            head = stream.read(8192)
        if b"\0" in head and head[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            head = head.replace(b"\0", b"")  # UTF-16 without a byte-order mark
        for encoding in ("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "cp1252"):
            try:
                text = head.decode(encoding, "ignore" if encoding != "cp1252" else "replace")
            except UnicodeError:
                continue
            lines = _without_separator_line(text.replace("\r\n", "\n").replace("\r", "\n"))[0].splitlines()
            return tuple(name.strip().lower() for name in _split(lines[0])) if lines else ()
    except (OSError, ValueError, csv.Error):
        pass
    return ()


def read_table(
    path: Path, roles: Mapping[str, Sequence[str]], *, required: Sequence[str], keep_faulty: bool = False
) -> Table:
    """Load a CSV file; columns are matched to roles by name, ignoring case and blanks, the first name of a role first.

    Every row needs a cell for each column with a role; blank rows and empty cells beyond the header are skipped.

    Args:
        path: the file: comma, semicolon, tab or bar; UTF-8, UTF-16 or Windows-1252.
        roles: for each role, the column names that people use for it, lower case.
        required: roles without which the table cannot be used.
        keep_faulty: keep short and long rows with their error, to be rejected one by one.

    Raises:
        AnnotationError: the file is not a table, a column is missing or occurs twice, or a row is short or long.
    """
    text, stated = _without_separator_line(read_text_file(path).text)
    if not text.strip():
        raise AnnotationError(path, "the CSV file is empty", "export the table again")
    first = text.lstrip("\n").split("\n", 1)[0]
    delimiter = stated or _delimiter_of(first)
    lines = _parsed(path, text, delimiter)
    number_of_header, header = lines[0]
    columns = _columns(path, header, roles)
    missing = [role for role in required if role not in columns]
    if missing:
        raise AnnotationError(
            path,
            f"has the columns {_listed(header)}; {_listed(missing)} expected",
            f"rename the columns in row {number_of_header}",
        )
    places = {role: header.index(name) for role, name in columns.items()}
    rows: list[Row] = []
    for number, cells in lines[1:]:
        where = f"{path}: row {number}"
        fault = _fault_of(where, cells, header, places, delimiter)
        if fault is not None and not keep_faulty:
            raise fault
        known = {role: cells[place].strip() for role, place in places.items() if place < len(cells)}
        rows.append(Row(where=where, cells=known, fault=fault))
    return Table(path=path, columns=columns, rows=tuple(rows))


def _counted(cells: int) -> str:
    return f"{cells} cell{'' if cells == 1 else 's'}"


def _fault_of(
    where: str, cells: Sequence[str], header: Sequence[str], places: Mapping[str, int], delimiter: str
) -> AnnotationError | None:
    if any(cell.strip() for cell in cells[len(header) :]):
        return AnnotationError(
            where,
            f"{_counted(len(cells))}, the header has {len(header)}",
            f"put quotes around a cell that holds {_named(delimiter)}",
        )
    short = next((place for place in places.values() if place >= len(cells)), None)
    if short is None:
        return None
    return AnnotationError(
        where,
        f"{_counted(len(cells))}, the header has {len(header)}, so {header[short]!r} is missing",
        "complete the row or remove it",
    )


def _parsed(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, with the number of the line each one ends on; the first is the header."""
    limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise AnnotationError(
            f"{path}: row {reader.line_num}",
            f"not readable as CSV ({error})",
            "check the quotes in this row and before it",
        ) from None
    finally:
        csv.field_size_limit(limit)
    if not lines:
        raise AnnotationError(path, "the CSV file has no rows", "export the table again")
    return lines


def _columns(path: Path, header: Sequence[str], roles: Mapping[str, Sequence[str]]) -> dict[str, str]:
    plain = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in header]
    columns: dict[str, str] = {}
    for role, names in roles.items():
        for name in names:
            places = [
                place for place, found in enumerate(plain) if found == name and header[place] not in columns.values()
            ]
            if len(places) > 1:
                raise AnnotationError(
                    path, f"has the column {header[places[0]]!r} {len(places)} times", "leave one of them"
                )
            if places:
                columns[role] = header[places[0]]
                break
    return columns


def _without_separator_line(text: str) -> tuple[str, str | None]:
    """Remove Excel's first line `sep=;`, and return the rest and the delimiter."""
    head, _, rest = text.partition("\n")
    if head.lower().startswith("sep=") and len(head) == 5:
        # the line stays as a blank one, so that rows keep their numbers
        return "\n" + rest, head[4]
    return text, None


def _delimiter_of(line: str) -> str:
    return max(DELIMITERS, key=lambda delimiter: (len(_split(line, delimiter)), -DELIMITERS.index(delimiter)))


def _split(line: str, delimiter: str | None = None) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter or _delimiter_of(line)), [])
    except csv.Error:
        return [line]


def _named(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else f"a {delimiter!r}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown
