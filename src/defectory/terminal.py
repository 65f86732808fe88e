"""Text from data, made safe for a terminal or one line of a message."""

from __future__ import annotations

import unicodedata

_SHOWN = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object) -> str:
    """Return a text as one line that moves no cursor and hides nothing: control, direction and surrogate characters are
    written as escapes.
    """
    return "".join(
        character if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escaped(character)
        for character in str(text)
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return _SHOWN.get(character) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
