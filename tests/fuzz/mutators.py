"""Damage to files: to the structure of JSON, TOML, CSV, YAML, XML and plain text, and to the bytes of images. All of it
is drawn from one generator.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

Tree = Any
TEXT_SUFFIXES = frozenset({".json", ".csv", ".yaml", ".yml", ".txt", ".xml", ".toml", ".names"})
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    255,
    65536,
    2**31,
    2**32,
    2**53,
    2**62,
    -(2**63),
    10**30,
    0.5,
    -0.0,
    1e-300,
    1e308,
    1.5e9,
    float("nan"),
    float("inf"),
    float("-inf"),
)
TEXTS = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "1.0",
    "nan",
    "true",
    "null",
    "None",
    "x",
    "a/b",
    "../../x",
    "/etc/hostname",
    "C:\\x\\y.png",
    "\\\\host\\x",
    ".",
    "..",
    "con",
    "é",
    "e\u0301",
    "\u202egnp.exe",
    "\x1b[31m",
    "\0",
    "\n",
    "\t",
    "[/x]",
    "[red]",
    "%s",
    "{}",
    "c0.png",
    "images",
    "scratch",
    "dent",
    "x" * 300,
    "ü" * 200,
    "\ud83d\ude00",
    "9" * 400,
    "0x10",
    "1e999",
    "1_000",
    "=1+1",
    "#ff0000",
    "polygon",
    "mask",
    "good",
    "\ufeff",
    "\udc80",
)
TOKENS = (
    ",",
    ";",
    ":",
    "|",
    '"',
    "'",
    "\n",
    "\r\n",
    "\t",
    " ",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    "</",
    "/>",
    "&",
    "&amp;",
    "&x;",
    "&#0;",
    "<!--",
    "]]>",
    "- ",
    "? ",
    "*a",
    "&a [",
    "!!python/object:os.system x",
    "!!binary x",
    "---",
    "...",
    "%YAML 9",
    "#",
    "=",
    "==",
    "''",
    '"""',
    "[[x]]",
    "\\",
    "\0",
    "\x0b",
    "\x85",
    "\u2028",
    "NaN",
    "-Infinity",
    "1e999",
    "0" * 50,
    "9" * 50,
    "true",
    "null",
    "~",
    ".inf",
    "2001-99-99",
    "0.5 0.5",
    "-1 0 0 0",
    "é",
    "\ufeff",
)


def mutated(name: str, data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return a file's bytes with one to three changes that fit its kind.

    Args:
        name: file name; its suffix tells the kind.
        data: valid content.
        rng: everything is drawn from it.
        others: content of other files, from which parts may come.
    """
    suffix = "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""
    if suffix not in TEXT_SUFFIXES:
        for _ in range(rng.choice((1, 1, 2, 5))):
            data = of_image(data, rng, others)
        return data
    if suffix == ".json" and rng.random() < 0.75:
        data = of_json(data, rng)
    elif suffix == ".csv" and rng.random() < 0.6:
        data = of_csv(data, rng)
    elif suffix == ".xml" and rng.random() < 0.6:
        data = of_xml(data, rng)
    else:
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = of_text(data, rng)
    if rng.random() < 0.12:
        data = recoded(data, rng)
    return of_bytes(data, rng, others) if rng.random() < 0.08 else data


def weird(rng: random.Random) -> Any:
    """Return a value that programs trip over."""
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind == 6:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}, [[[]]], [{}]))
    if kind == 7:
        return [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 4, 5, 7, 50)))]
    if kind == 8:
        return {
            rng.choice(TEXTS): rng.choice(NUMBERS),
            "size": [rng.choice(NUMBERS), rng.choice(NUMBERS)],
            "counts": rng.choice(TEXTS),
        }
    deep: Any = rng.choice((1, "x"))
    for _ in range(rng.choice((3, 40, 200))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def nodes(value: Tree, parent: Tree = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield (parent, key) of every node of a JSON tree but its root."""
    if parent is not None:
        yield parent, key
    for k, child in list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from nodes(child, value, k)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Change one to three nodes of a JSON tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return of_text(data, rng)
    if rng.random() < 0.03:
        return dumped(weird(rng), rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(nodes(tree))
        if not found:
            break
        # near the root there are few nodes, so that a plain draw would nearly always hit a number of an outline
        shallow = [pair for pair in found if isinstance(pair[1], str)]
        change_node(*rng.choice(shallow if shallow and rng.random() < 0.6 else found), rng, found)
    return dumped(tree, rng)


def change_node(parent: Tree, key: Any, rng: random.Random, found: list[tuple[Any, Any]]) -> None:
    """Change one node in place."""
    value = parent[key]
    match rng.randrange(13):
        case 0 | 1 | 2:
            parent[key] = weird(rng)
        case 3:
            del parent[key]
        case 4:
            parent[key] = [value] if rng.random() < 0.5 else {"x": value}
        case 5:
            parent[key] = str(value) if rng.random() < 0.7 else json.dumps(value)
        case 6 if isinstance(value, list) and value:
            value += [rng.choice(value)] * rng.choice((1, 2, 100))
        case 7 if isinstance(parent, dict):
            parent[rng.choice((*TEXTS, *parent))] = parent.pop(key)
        case 8:
            other, place = rng.choice(found)
            try:
                parent[key] = json.loads(json.dumps(other[place]))
            except (ValueError, KeyError, IndexError, RecursionError):
                parent[key] = None
        case 9 if isinstance(value, int | float):
            parent[key] = rng.choice((-value, value + 1, value - 1, value * 1000, value / 3, float(value), value + 0.5))
        case 10 if isinstance(value, list):
            rng.shuffle(value)
        case 11 if isinstance(value, str):
            at = rng.randrange(len(value) + 1)
            parent[key] = value[:at] + rng.choice(TEXTS) + value[at + rng.randrange(3) :]
        case _:
            parent[key] = rng.choice(NUMBERS) if isinstance(value, int | float) else rng.choice(TEXTS)


def dumped(tree: Tree, rng: random.Random) -> bytes:
    """Write a JSON tree, half characters as escapes."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def of_csv(data: bytes, rng: random.Random) -> bytes:
    """Change cells, rows, the header or the separator of a CSV file."""
    rows = [line.split(",") for line in data.decode("utf-8", "replace").splitlines()] or [[""]]
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rows[0] if rng.random() < 0.2 else rng.choice(rows)
        at = rng.randrange(len(row)) if row else 0
        match rng.randrange(10):
            case 0 | 1 | 2 if row:
                row[at] = str(weird(rng))[:500]
            case 3 if row:
                del row[at]
            case 4:
                row.insert(at, rng.choice(TEXTS))
            case 5:
                rows.insert(rng.randrange(len(rows) + 1), list(row))
            case 6:
                rows.remove(row)
                rows = rows or [[""]]
            case 7 if row:
                row[at] = f'"{row[at]}' + rng.choice(('"', "", '""', "\n", '"x'))
            case 8:
                rng.shuffle(row)
            case _ if row:
                row[at] = rng.choice(rng.choice(rows) or [""])
    separator = rng.choice((",", ",", ",", ";", "\t", "|", ", "))
    return (
        rng.choice(("\n", "\n", "\r\n", "\r"))
        .join(separator.join(row) for row in rows)
        .encode("utf-8", "surrogatepass")
    )


def of_xml(data: bytes, rng: random.Random) -> bytes:
    """Change attributes and elements of an XML file, or add a document type."""
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(re.finditer(r'="[^"]*"|>[^<>]+<|</?\w+|\w+(?==")', text))
        if not found:
            break
        match = rng.choice(found)
        start, end = match.span()
        token = match.group()
        if token.startswith('="'):
            new = f'="{weird(rng)}"'
        elif token.startswith(">"):
            new = f">{weird(rng)}<"
        elif rng.random() < 0.5:
            new = rng.choice((token + "x", "", token[:1] + "image", token[:1] + "x"))
        else:
            other = rng.choice(found).span()
            new = text[other[0] : other[1]]
        text = text[:start] + new + text[end:]
    if rng.random() < 0.05:
        entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))
        text = f'<!DOCTYPE x [<!ENTITY l0 "ha">{entities}]>' + re.sub(r"^<\?xml[^>]*\?>", "", text).replace(
            "><", ">&l8;<", 1
        )
    if rng.random() < 0.05:
        text = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/hostname">]>' + re.sub(r"^<\?xml[^>]*\?>", "", text)
    if rng.random() < 0.04:
        text = text.replace("</", "<a>" * rng.choice((50, 5000)) + "</", 1)
    return text.encode("utf-8", "surrogatepass")


def of_text(data: bytes, rng: random.Random) -> bytes:
    """Change words, lines or indents of a text."""
    text = data.decode("utf-8", "replace")
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(13):
        case 0 | 1:
            words = list(re.finditer(r"[^\s,:=\[\]{}<>\"']+", text))
            if words:
                start, end = rng.choice(words).span()
                new = str(weird(rng))[:2000] if rng.random() < 0.7 else text[slice(*rng.choice(words).span())]
                text = text[:start] + new + text[end:]
            return text.encode("utf-8", "surrogatepass")
        case 2 | 3:
            place = rng.randrange(len(text) + 1)
            return (text[:place] + rng.choice(TOKENS) + text[place + rng.choice((0, 0, 1, 5)) :]).encode(
                "utf-8", "surrogatepass"
            )
        case 4:
            del lines[at]
        case 5:
            lines.insert(at, lines[rng.randrange(len(lines))])
        case 6:
            lines[at] = rng.choice((" ", "  ", "\t", "- ")) + lines[at]
        case 7:
            lines[at] = lines[at].lstrip()
        case 8:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 9:
            lines[at] += rng.choice(TOKENS) + rng.choice(TEXTS)
        case 10:
            lines[at] = lines[at] * rng.choice((2, 20))
        case 11:
            lines.insert(at, bomb(rng))
        case _:
            lines = lines[:at]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def bomb(rng: random.Random) -> str:
    """Return a line that grows or nests without end where it is trusted."""
    depth = rng.choice((30, 1000, 20000))
    return rng.choice(
        (
            "[" * depth,
            "x: " + "[" * depth + "]" * depth,
            "a: &a [x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c]\nnames: &e "
            "[*d,*d,*d,*d,*d,*d,*d]",
            "names: &n {0: *n}",
            "x = " + "[" * depth + "]" * depth,
            "x" + ".a" * depth + " = 1",
            "1 " * depth,
            "- " * depth,
            "{" * depth,
            "0 " + "0.5 " * depth,
            "x" * depth,
            '"' + "\\" * depth,
        )
    )


def recoded(data: bytes, rng: random.Random) -> bytes:
    """Write a text in another encoding, with or without a byte-order mark."""
    text = data.decode("utf-8", "replace")
    encoding = rng.choice(
        ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1", "utf-7", "shift_jis", "cp037")
    )
    return text.encode(encoding, "replace")


def of_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change, cut, repeat or insert bytes, whatever they mean."""
    at = rng.randrange(len(data) + 1)
    size = rng.choice((1, 1, 2, 4, 16, 200))
    match rng.randrange(9):
        case 0 | 1:
            return data[:at] + rng.randbytes(size) + data[at + size :]
        case 2:
            return data[:at] + data[at + size :]
        case 3:
            return data[:at] + rng.randbytes(size) + data[at:]
        case 4:
            return data[:at]
        case 5:
            return data[:at] + data[at : at + size] * rng.choice((2, 3, 1000)) + data[at + size :]
        case 6 if others:
            other = rng.choice(others)
            return data[:at] + other[rng.randrange(len(other) + 1) :][:4096]
        case 7:
            return data[:at] + rng.choice((b"\0", b"\xff")) * size + data[at + size :]
        case _:
            return rng.choice((b"", b"\0", data[at:], data + data, data[::-1]))


def of_image(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change bytes of an image file, numbers of its header more often than others."""
    if len(data) > 32 and rng.random() < 0.6:
        # sizes, depths, offsets and counts lie in the first bytes; TIFF's may lie in the last
        at = (
            rng.randrange(min(len(data) - 8, 120))
            if rng.random() < 0.8
            else len(data) - 8 - rng.randrange(min(200, len(data) - 8))
        )
        number = rng.choice((0, 1, 2, 3, 8, 16, 17, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)))
        form = rng.choice(("<I", ">I", "<H", ">H", "B"))
        raw = struct.pack(form, number % 256 ** struct.calcsize(form))
        changed = data[:at] + raw + data[at + len(raw) :]
        return with_checksums(changed) if rng.random() < 0.8 else changed
    return with_checksums(of_bytes(data, rng, others)) if rng.random() < 0.3 else of_bytes(data, rng, others)


def with_checksums(data: bytes) -> bytes:
    """Write right checksums into the chunks of a PNG file, so that readers look at what is in them."""
    import zlib

    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    result, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        result += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return result + data[at:]


Mutator = Callable[[str, bytes, random.Random, list[bytes]], bytes]
