"""Renders a report's content with `templates/` as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as Pillow

from defectory.files import write_text
from defectory.report.charts import line_chart
from defectory.report.content import Chart, Image, ReportContent
from defectory.terminal import printable

JPEG_QUALITY = 90
VERDICT_CLASSES = {"use it": "good", "do not use it": "bad"}
FINDING_WORDS = {True: ("yes", "detected"), False: ("no", "not detected"), None: ("unknown", "cannot be told")}
"""CSS class and text of a failure signature: detected, not detected, or unknown."""


def render_report(content: ReportContent) -> str:
    """Render the page as self-contained HTML."""
    page = environment().get_template("page.html.jinja")
    verdict_class = VERDICT_CLASSES.get(content.outcome.outcome, "open")
    return page.render(content=content, verdict_class=verdict_class, finding_words=FINDING_WORDS, svg=Markup)


def anchor(name: str) -> str:
    """Return the id of the element with a name, for links within the page."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def about(seconds: float) -> str:
    """Return a rough duration for the end of a sentence."""
    if seconds < 60:
        return "less than a minute"
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} hours"


def write_report(content: ReportContent, path: Path) -> None:
    """Write the page atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, render_report(content))


def picture_uri(image: Image) -> Markup:
    """Encode an image, RGB uint8 [H,W,3], as a `data:` URI: PNG if small, else JPEG."""
    stream = io.BytesIO()
    if image.shape[0] * image.shape[1] <= 160 * 160:
        Pillow.fromarray(image).save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        Pillow.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
        kind = "jpeg"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}")


@cache
def environment() -> Environment:
    """Return the environment of all pages: escaping, filters and strict names."""
    environment = Environment(
        loader=PackageLoader("defectory.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["picture_uri"] = picture_uri
    environment.filters["line_chart"] = _chart
    environment.filters["anchor"] = anchor
    environment.filters["about"] = about
    return environment


def _chart(chart: Chart) -> Markup:
    return Markup(line_chart(chart))


def _shown(value: Any) -> Any:
    """Escape control and direction characters in a text; leave markup unchanged."""
    return value if isinstance(value, Markup) else printable(value)
