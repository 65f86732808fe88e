"""The documentation builds strictly, loads nothing from a network, and no relative link leads nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DECISIONS = sorted(DOCS.glob("decisions/0*.md"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md"))], key=lambda page: page.relative_to(ROOT).as_posix()
)
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
"""Kinds of <link> that a browser fetches."""
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


class Loads(HTMLParser):
    """Collect what a page makes a browser load, and the targets of its links."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        if tag == "link" and LOADED_LINKS & set(of.get("rel", "").split()):
            self.loaded.append(of.get("href", ""))
        for name in ("src", "srcset", "poster", "data", "xlink:href"):
            if name in of:
                self.loaded += [part.split()[0] for part in of[name].split(",") if part.split()]
        if tag in {"image", "use"} and "href" in of:
            self.loaded.append(of["href"])
        if "style" in of:
            self.loaded += urls_of(of["style"])


def urls_of(css: str) -> list[str]:
    return re.findall(r"""(?:url\(|@import\s+)\s*["']?([^"')\s;]+)""", css)


def is_remote(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme in {"http", "https", "ftp", "ws", "wss"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_site_has_its_pages(site: Path) -> None:
    for page in ("index", "getting-started/install", "concepts/fidelity", "results/index", "decisions/index"):
        assert (site / f"{page}.html").is_file(), page
    assert "counterfactual" in (site / "search" / "search_index.json").read_text("utf-8").lower()


def test_reference_describes_functions(site: Path) -> None:
    text = (site / "reference" / "foundations.html").read_text("utf-8")
    assert 'id="defectory.registry.Registry.register"' in text


def test_equations_are_mathml(site: Path) -> None:
    text = (site / "concepts" / "verdict.html").read_text("utf-8")
    assert "<math" in text
    assert "$$" not in text


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    found: list[str] = []
    for page in site.rglob("*.html"):
        parser = Loads()
        text = page.read_text("utf-8")
        parser.feed(text)
        loaded = parser.loaded + [
            url for css in re.findall(r"<style[^>]*>(.*?)</style>", text, re.S) for url in urls_of(css)
        ]
        found += [f"{page.relative_to(site)}: {url}" for url in loaded if is_remote(url)]
    for sheet in site.rglob("*.css"):
        found += [f"{sheet.relative_to(site)}: {url}" for url in urls_of(sheet.read_text("utf-8")) if is_remote(url)]
    assert not found


def test_site_asks_for_no_outside_script(site: Path) -> None:
    """The theme's script would fetch a renderer for diagrams and a repository's stars if a page asked for them."""
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert 'class="mermaid"' not in text, page
        assert 'data-md-component="source"' not in text, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page: Path) -> None:
    missing: list[str] = []
    for target in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
        url = urlsplit(target)
        if url.scheme or url.netloc:
            continue
        place = page if not url.path else page.parent / unquote(url.path)
        if not place.exists() or (url.fragment and place.suffix == ".md" and url.fragment not in anchors_of(place)):
            missing.append(target)
    assert not missing


def anchors_of(page: Path) -> set[str]:
    """Return the names of a page's headings as mkdocs gives them."""
    from markdown.extensions.toc import slugify

    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {slugify(re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading), "-") for heading in headings}


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda page: page.stem[:3])
def test_decision_has_a_status_and_a_row_in_the_index(decision: Path) -> None:
    status = next(line for line in decision.read_text("utf-8").splitlines() if line.startswith("Status: "))
    assert re.match(r"Status: (accepted|rejected|superseded by \[\d{3}\]\([^)]+\))\. ?", status), status
    row = next(
        line
        for line in (DOCS / "decisions" / "index.md").read_text("utf-8").splitlines()
        if f"({decision.name})" in line and line.startswith(f"| {decision.stem[:3]} ")
    )
    assert status.removeprefix("Status: ").split(".")[0].split(" ")[0] in row
