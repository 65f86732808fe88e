"""Convert any text to a file name and back, in the same way on Linux, Windows and macOS."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

MAX_BYTES = 120
"""Maximum length of an encoded name; longer names are cut and end in a digest.

Every file system allows 255 bytes, and suffixes and temporary names need part of them.
"""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_SAFE = frozenset(" !#$&'()+,-.;=@[]^_`{}~")
_EMPTY = "%"


def file_name_of(text: str) -> str:
    """Return a file name for a text: no separators, no control characters, no name that a system reserves.

    Characters that are unsafe on some system become `%` and two hex digits per UTF-8 byte; `text_of` decodes them. The
    empty text becomes `%`. A name over `MAX_BYTES` is cut and ends in `%~` and a digest; `text_of` can then decode it
    only among known texts.

    Args:
        text: anything, for example a class name in a user's annotation file.
    """
    if not text:
        return _EMPTY
    whole = _encoded(text)
    if len(whole.encode("utf-8")) <= MAX_BYTES:
        return whole
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    kept = whole.encode("utf-8")[: MAX_BYTES - len(digest) - 2].decode("utf-8", "ignore")
    return f"{re.sub('%[0-9A-F]?$', '', kept)}%~{digest}"


def text_of(name: str, known: Iterable[str] = ()) -> str | None:
    """Return the text that a file name stands for; None if it was cut and matches none of the known texts.

    Args:
        name: as `file_name_of` or `file_names_of` returned it; macOS may have decomposed its letters.
        known: texts that it may stand for.
    """
    name = unicodedata.normalize("NFC", name)
    if name == _EMPTY:
        return ""
    if "%~" in name:
        return next((text for text in known if file_name_of(text).casefold() == name.casefold()), None)
    data = re.sub(
        rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), name.encode("utf-8", "surrogatepass")
    )
    return data.decode("utf-8", "surrogatepass")


def file_names_of(texts: Iterable[str]) -> dict[str, str]:
    """Return a file name for each text, distinct even if case is ignored; `text_of` decodes each name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        if text in names:
            continue
        name = file_name_of(text)
        escaped = 0
        while name.casefold() in taken and escaped < len(text):
            # for texts that differ only in case, more and more letters are escaped
            escaped += 1
            name = _spelled_out(text[:escaped]) + (_encoded(text[escaped:]) if text[escaped:] else "")
        names[text] = name
        taken.add(name.casefold())
    return names


def _spelled_out(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _encoded(text: str) -> str:
    stable = unicodedata.normalize("NFC", text) == text
    last = len(text) - 1
    parts: list[str] = []
    for position, character in enumerate(text):
        plain = (character.isascii() and character.isalnum()) or character in _SAFE or (stable and character.isalnum())
        # Windows drops dots and spaces at the end; a leading dot hides a file
        edge = (position == last and character in ". ") or (position == 0 and character in ". ~")
        if plain and not edge:
            parts.append(character)
        else:
            parts.append(_spelled_out(character))
    name = "".join(parts)
    if _RESERVED.fullmatch(name):
        name = f"{_spelled_out(name[0])}{name[1:]}"
    return name
