"""Text from data moves no cursor."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from defectory.terminal import printable


@given(st.text())
def test_what_is_printed_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in shown)
    shown.encode()


def test_escapes_are_shown_and_letters_kept() -> None:
    assert printable("\x1b[2JRiß 划痕\n\u202ex") == "\\x1b[2JRiß 划痕\\n\\u202ex"
