"""File names from any text: safe on every system, and read back."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectory.filenames import MAX_BYTES, file_name_of, file_names_of, text_of

TEXTS = st.text(max_size=80)
FORBIDDEN = set('<>:"/\\|?*%') - {"%"}
RESERVED = ("con", "prn", "aux", "nul", "com1", "lpt9")


@given(TEXTS)
def test_a_name_is_safe_everywhere_and_read_back(text: str) -> None:
    name = file_name_of(text)
    assert not FORBIDDEN & set(name)
    assert not any(unicodedata.category(character) == "Cc" for character in name)
    assert name
    assert name not in (".", "..")
    assert name[0] not in ". ~"
    assert name[-1] not in ". "
    assert name.split(".")[0].lower() not in RESERVED
    assert len(name.encode()) <= MAX_BYTES
    assert text_of(name, [text]) == text


@given(TEXTS)
def test_a_system_that_decomposes_letters_gives_the_same_text_back(text: str) -> None:
    assert text_of(unicodedata.normalize("NFD", file_name_of(text)), [text]) == text


@given(st.lists(TEXTS, max_size=12), st.sampled_from([str.upper, str.lower, str.title]))
def test_names_of_several_texts_are_distinct_where_capitals_do_not_count(texts: list[str], change) -> None:
    every = [*texts, *(change(text) for text in texts)]
    names = file_names_of(every)
    assert set(names) == set(every)
    assert len({name.casefold() for name in names.values()}) == len(names)
    for text, name in names.items():
        if "%~" not in name:
            assert text_of(name) == text


@pytest.mark.parametrize(
    "text",
    ["../../../x", "/etc/x", "a/b", "", "x" * 300, "CON", "aux.txt", "crack.", ".hidden", "a%2Fb", "~", "\0", "\ud800"],
)
def test_hostile_class_names_stay_inside_their_folder(text: str, tmp_path: Path) -> None:
    path = tmp_path / file_name_of(text)
    path.mkdir()
    assert path.parent == tmp_path
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert text_of(path.name, [text]) == text


def test_a_name_that_was_cut_and_is_none_of_the_known_texts_is_no_text() -> None:
    assert text_of(file_name_of("x" * 300), ["y"]) is None
