"""Text of any tool and country is read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from defectory.errors import AnnotationError
from defectory.textfile import read_json_file, read_text_file

TEXT = "image;Größe\r\nprüf.png;3\rlast\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_a_text_is_read_whatever_its_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text_file(path).text == TEXT.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xfe\x00", "is not text"), (b"a,b\x00c\n1", "zero bytes"), (b"\x81\x8d\xff", "is not text")],
)
def test_what_is_no_text_is_refused_in_one_line(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match=words):
        read_text_file(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("{", "is not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ("1" * 5000, "not usable JSON"),
        ('{"a": 1} x', "is not JSON"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=words) as caught:
        read_json_file(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="is a folder"):
        read_text_file(tmp_path)
    with pytest.raises(AnnotationError, match="no such file"):
        read_text_file(tmp_path / "none.json")
    with pytest.raises(AnnotationError):
        read_text_file(tmp_path / "a\0b")
