"""CSV tables of every tool and country."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from defectory.errors import AnnotationError
from defectory.formats.tables import read_header, read_table

from .folder_sets import write

ROLES = {"image": ("image", "file"), "class": ("class",), "group": ("group",)}
ROWS = [["Image", "Class", "note"], ["a.png", "Kratzer, tief", "x"], ["b.png", "größe", ""]]


def text_of(delimiter: str) -> str:
    def cell(text: str) -> str:
        return f'"{text}"' if delimiter in text else text

    return "\r\n".join(delimiter.join(map(cell, row)) for row in ROWS) + "\r\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_every_usual_delimiter_and_encoding_is_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = write(tmp_path / "t.csv", text_of(delimiter).encode(encoding))
    table = read_table(path, ROLES, required=("image",))
    assert [row.get("image") for row in table.rows] == ["a.png", "b.png"]
    assert [row.get("class") for row in table.rows] == ["Kratzer, tief", "größe"]
    assert table.rows[0].get("group") == ""
    assert read_header(path) == ("image", "class", "note")


def test_excels_separator_line_and_blank_rows_and_cells_keep_row_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "sep=;\nimage;class;;\n\na.png;x;;\n;;;\nb.png\n")
    with pytest.raises(AnnotationError, match=r"t\.csv: row 6: 1 cell, the header has 4, so 'class' is missing"):
        read_table(path, ROLES, required=("image",))
    write(path, "sep=;\nimage;class;;\n\na.png;x;;\n;;;\nb.png;y\n")
    assert [row.where.rsplit(" ", 1)[1] for row in read_table(path, ROLES, required=("image",)).rows] == ["4", "6"]


def test_a_short_row_matters_only_where_a_needed_cell_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,class,note\na.png,x\n")
    assert len(read_table(path, ROLES, required=("image",)).rows) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,class\na.png,scratch, deep\n", r"row 2: 3 cells, the header has 2; put quotes"),
        ('image,class\na.png,"scratch\nb.png,dent\n', r"row \d: not readable as CSV"),
        ("image,image\na,b\n", "column 'image' 2 times"),
        ("name,mask\na,b\n", "columns name, mask; image expected"),
        ("", "empty"),
        ("\n\n", "empty"),
        ("image\na\0b\n", "zero bytes"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(AnnotationError, match=words) as caught:
        read_table(write(tmp_path / "t.csv", text), ROLES, required=("image",))
    assert "\n" not in str(caught.value)


def test_a_long_cell_is_read_and_the_modules_limit_is_left_as_it_was(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    table = read_table(write(tmp_path / "t.csv", f"image,class\na,{'1 2 ' * 100_000}\n"), ROLES, required=("image",))
    assert len(table.rows[0].get("class")) > 300_000
    assert csv.field_size_limit() == limit
