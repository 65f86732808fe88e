"""Load text files with any encoding (byte-order marks, UTF-16, Windows code pages), and JSON and XML from them.

Does not depend on any annotation format.
"""

from __future__ import annotations

import codecs
import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from defectory.errors import AnnotationError

MAX_BYTES = 1_000_000_000
MAX_XML_DEPTH = 100
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """The text of a file and the encoding it was read with."""

    text: str
    encoding: str


def read_text_file(path: Path) -> TextFile:
    """Load a text file, whatever tool wrote it.

    A byte-order mark decides the encoding. Without one, UTF-16 is recognised by its zero bytes, then UTF-8 is tried,
    then Windows-1252, in which every byte but five is a letter. Line ends become line feeds.

    Raises:
        AnnotationError: the file is missing, cannot be opened, is too large, or is not text.
    """
    try:
        about = path.stat()
        if stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):  # a device may have no end
            raise AnnotationError(path, "is a device, a file was expected", "check the path")
        if about.st_size > MAX_BYTES:
            raise AnnotationError(path, f"{about.st_size / 1e9:.1f} GB of text", "split the file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise AnnotationError(path, "no such file", "check the path") from None
    except IsADirectoryError:
        raise AnnotationError(path, "is a folder, a file was expected", "name the file in it") from None
    except PermissionError:
        raise AnnotationError(path, "permission denied", "make the file readable") from None
    except (OSError, ValueError) as error:
        raise AnnotationError(
            path, f"cannot be read ({getattr(error, 'strerror', None) or error})", "check the path"
        ) from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _guessed(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise AnnotationError(
            path, f"is not text (byte {error.start} is not {encoding})", "export it again as UTF-8"
        ) from None
    if "\0" in text:
        raise AnnotationError(path, "contains zero bytes and is not a text file", "export it again as UTF-8")
    return TextFile(text=text.replace("\r\n", "\n").replace("\r", "\n"), encoding=encoding)


def read_json_file(path: Path) -> Any:
    """Load a JSON file in any encoding of `read_text_file`.

    Raises:
        AnnotationError: as for `read_text_file`, or the text is not JSON, is nested too deeply, or ends early.
    """
    text = read_text_file(path).text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise AnnotationError(path, "the file is empty", "export the annotations again") from None
        raise AnnotationError(
            path,
            f"is not JSON ({error.msg.lower()}, line {error.lineno} column {error.colno})",
            "export the annotations again",
        ) from None
    except RecursionError:
        raise AnnotationError(path, "is nested too deeply", "export the annotations again") from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise AnnotationError(
            path, f"is not usable JSON ({str(error).splitlines()[0]})", "export the annotations again"
        ) from None


def sniff_text(path: Path, *, num_bytes: int = 16_384) -> str:
    """Return the first and last `num_bytes` of a text file; empty if it is unreadable or not text."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(num_bytes)
            size = stream.seek(0, 2)
            # an offset divisible by 4 keeps UTF-16 characters whole
            stream.seek(max(num_bytes, size - num_bytes) // 4 * 4)
            tail = stream.read(num_bytes + 4)
    except (OSError, ValueError):
        return ""
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None) or _guessed(head)
    if encoding == "utf-16":
        encoding = "utf-16-le" if head.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    elif encoding == "utf-32":
        encoding = "utf-32-le" if head.startswith(codecs.BOM_UTF32_LE) else "utf-32-be"
    text = f"{head.decode(encoding, 'ignore')}{tail.decode(encoding, 'ignore')}".removeprefix("\ufeff")
    return "" if "\0" in text else text


def read_xml_file(path: Path) -> Element:
    """Load an XML file in its declared encoding, else in any of `read_text_file`; return its root.

    Entities are refused: no annotation needs them, and nested ones can expand without limit.

    Raises:
        AnnotationError: as for `read_text_file`, or the text is not XML, is nested too deeply, or declares entities.
    """
    text = _declared_text(path) or read_text_file(path).text
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff"))
    if "<!ENTITY" in text:
        raise AnnotationError(path, "declares XML entities", "export the annotations again")
    builder = _ShallowBuilder(path)
    parser = XMLParser(target=builder)
    try:
        parser.feed(text)
        return parser.close()
    except (ParseError, ValueError) as error:
        found = "the file is empty" if not text.strip() else f"is not XML ({str(error).splitlines()[0]})"
        raise AnnotationError(path, found, "export the annotations again") from None


class _ShallowBuilder(TreeBuilder):
    """A builder of element trees that refuses too deep nesting."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.depth = path, 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self.depth += 1
        if self.depth > MAX_XML_DEPTH:
            raise AnnotationError(self.path, "is nested too deeply", "export the annotations again")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def _declared_text(path: Path) -> str | None:
    """Return the text in the encoding that an XML declaration names; None if there is none or it does not fit."""
    try:
        with open(path, "rb") as stream:
            found = re.match(rb"\s*<\?xml[^>]{0,200}encoding=[\"']([A-Za-z0-9._-]{1,40})[\"']", stream.read(300))
            if found is None or path.stat().st_size > MAX_BYTES:
                return None
            stream.seek(0)
            return stream.read().decode(found[1].decode("ascii"))
    except (OSError, LookupError, ValueError):
        return None


def _guessed(data: bytes) -> str:
    head = data[:4096]
    if len(head) >= 4:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if odd > len(head) // 4 and even < odd // 8:
            return "utf-16-le"
        if even > len(head) // 4 and odd < even // 8:
            return "utf-16-be"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"
