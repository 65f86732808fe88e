"""Escape text from data for a terminal or a one-line message."""

from __future__ import annotations

import unicodedata

_SHOWN = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object) -> str:
    """Return a text as one printable line; control, direction and surrogate characters become escapes."""
    return "".join(
        character if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escaped(character)
        for character in str(text)
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return _SHOWN.get(character) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
