"""Write equations as MathML when the site is built, so that pages need no script for them.

A block is `$$ ... $$` on lines of its own, an inline formula is `$...$` around text without spaces at its ends.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_FENCE = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<![\\$\w])\$(\S(?:[^$\n]*\S)?)\$(?![\w$])")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the formulas of a page outside code."""
    parts = _FENCE.split(markdown)
    return "".join(part if index % 2 else _with_math(part) for index, part in enumerate(parts))


def _with_math(text: str) -> str:
    text = _BLOCK.sub(lambda m: f'<div class="equation">{convert(m[1], display="block")}</div>', text)
    return _INLINE.sub(lambda m: convert(m[1]), text)
