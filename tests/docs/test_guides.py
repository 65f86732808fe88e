"""What guides show is right: commands parse, settings exist and resolve, Python runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from defectory import Project, StageEnded, extract_driver
from defectory.cli.main import app
from defectory.config.resolve import defaults, resolve
from defectory.config.template import project_template
from defectory.formats.writers.registry import WRITERS

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first-look.ipynb"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "docs" / "getting-started").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs" / "architecture.md",
    NOTEBOOK,
]
BLOCK = re.compile(r"^([ ]*)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SECTIONS = "|".join(sorted({key.split(".")[0] for key in defaults() if "." in key}))
SETTING = re.compile(rf"({SECTIONS})((?:\.\w+)+)( = .+)?")
ELSEWHERE = {"drivers.kind": '"my_package:redness"'}
"""Values that name something of the reader's."""
WITH_IT = {"inpaint": ['drivers.kind="image"']}
"""Settings that a value asks for, which the guides say."""
RUNS_ELSEWHERE = {"plain-diffusers", "condition-networks", "export"}
"""The first takes a minute with a real base, and the tests of a whole run execute it. The second needs a hypernetwork,
and the tests of that execute it. The third needs an extra, and the tests of `export_onnx` execute it.
"""
OTHER_PROGRAMS = {"accelerate", "build/bin/python", "python", "python3", "pip", "tar", "docker", "yolo", "labelme"}
OTHER_OPTIONS = {
    *("--build-arg", "--gpus"),  # docker
    *("--constraint", "--editable", "--extra-index-url", "--find-links", "--no-index"),  # pip
    "--strict",  # mkdocs
    *("--multi_gpu", "--num_processes"),  # accelerate
}
NO_SETTINGS = {"data.yaml", "section.key=value"}
"""A file's name, and a form."""

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@dataclass(frozen=True, kw_only=True)
class Block:
    page: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def text_of(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text("utf-8")
    cells = json.loads(page.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks(language: str) -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(text_of(page))):
            if match[2] == language:
                text = "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines())
                found.append(Block(page=page.stem, number=number, text=text))
    return found


def words_of(line: str) -> list[str]:
    """Return what the command `defectory` is given in a line of a console; nothing where the line runs another one."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["docker", "run"]:
        image = next(index for index, word in enumerate(words) if word.split(":")[0] == "defectory")
        return words[image + 1 :]
    return words[1:] if words and Path(words[0]).name == "defectory" else []


def verb_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name, and the words after its name."""
    command, words = get_command(app), list(words)
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command = command.commands[words.pop(0)]
    return command, words


def require_command(words: list[str]) -> None:
    """Parse a command as the command line does, without running it."""
    command, rest = verb_of(words)
    assert not getattr(command, "commands", None), f"{words} names a group of verbs"
    given = command.make_context(command.name, rest).params
    if given.get("project") is not None:
        assert str(given["project"]).endswith(".toml"), f"{given['project']} is no project file"
    if command.name == "export" and given["kind"] is not None:
        assert given["kind"] in WRITERS.names()
    overrides = [*(given.get("override") or [])]
    if given.get("focus") is not None:
        overrides.append(f'synthesis.focus="{given["focus"]}"')
    if given.get("preset") is not None or overrides:
        resolve(project={"data": {"path": "labels.json"}}, preset=given.get("preset"), overrides=overrides)


def lines() -> Iterator[Any]:
    for block in blocks("console"):
        for number, line in enumerate(block.text.splitlines()):
            if line.strip():
                yield pytest.param(line, id=f"{block}-{number}")


@pytest.mark.parametrize("line", lines())
def test_a_command_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of(line)
    if words == ["--version"]:
        return
    if words or shlex.split(line)[0].endswith("defectory"):
        require_command(words)
    elif line.startswith("make "):
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert line.split()[1] in targets
    else:
        program = shlex.split(line, comments=True)[0]
        assert program in OTHER_PROGRAMS or program.startswith(".venv/bin/"), program
    assert not list(tmp_path.iterdir())


def spans() -> Iterator[Any]:
    for page in PAGES:
        for number, match in enumerate(SPAN.finditer(BLOCK.sub("", text_of(page)))):
            yield page.stem, number, match[1]


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=f"{page}-{i}") for page, i, text in spans() if text.startswith("defectory ")]
)
def test_a_command_within_a_sentence_is_there(text: str) -> None:
    words = words_of(text)
    command, rest = verb_of(words)
    if rest and rest != ["--help"]:
        require_command(words)
    elif words != ["--help"]:
        assert not getattr(command, "commands", None) or rest, text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text.removeprefix("-o ").strip("'"), id=f"{page}-{i}")
        for page, i, text in spans()
        if (SETTING.fullmatch(text) or re.match(r"-o \S+=", text)) and text.removeprefix("-o ") not in NO_SETTINGS
    ],
)
def test_a_setting_within_a_sentence_is_there(text: str) -> None:
    key, sign, value = (part.strip() for part in text.partition("="))
    assert key in defaults() or any(known.startswith(f"{key}.") for known in defaults()), f"no such setting: {key}"
    if sign and ELSEWHERE.get(key) != value:
        more = [setting for word, settings in WITH_IT.items() if word in value for setting in settings]
        resolve(project={"data": {"path": "labels.json"}}, overrides=[f"{key}={value}", *more])


def options_of(command: Any) -> set[str]:
    """Return the options of a command and of all below it."""
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*(options_of(each) for each in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize(
    "option", sorted({text.split()[0] for _, _, text in spans() if text.startswith("--")} - OTHER_OPTIONS)
)
def test_an_option_within_a_sentence_is_there(option: str) -> None:
    assert option in options_of(get_command(app))


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_part_of_a_project_file_resolves(block: Block) -> None:
    content = tomllib.loads(block.text)
    if "project" in content:
        groups = [name for name in content["project"]["entry-points"] if name.startswith("defectory.")]
        assert groups
        return
    resolve(project={"data": {"path": "labels.json"}, **content})


@pytest.fixture(scope="module")
def project_folder(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `project.toml` and its finished run, which code may write into."""
    folder = tmp_path_factory.mktemp("guides") / "copy"
    shutil.copytree(tiny_run[0], folder)
    # a study of one cell with two arms that need no generator is enough to see that its code runs
    study = {"seeds": [0], "arms": ["real", "copy_paste"]}
    (folder / "project.toml").write_text(project_template({**tiny_run[1], "study": study}))
    return folder


@pytest.mark.parametrize(
    "block",
    [
        # a study takes half a minute, and tests of studies run them
        pytest.param(block, marks=[pytest.mark.long] if block.page == "studies" else [], id=str(block))
        for block in blocks("python")
    ],
)
def test_python_runs(
    block: Block, project_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = compile(block.text, f"{block}", "exec")
    if block.page in RUNS_ELSEWHERE:
        return
    monkeypatch.chdir(project_folder)
    names: dict[str, Any] = {}
    if block.page == NOTEBOOK.stem:
        exec("from PIL import Image\nfrom defectory import StageEnded", names)
        names["project"] = Project.open("project.toml", environment={})
    exec(code, names)
    if block.page == "README":
        assert "8 drafts judged" in capsys.readouterr().out
    if "redness" in names:
        monkeypatch.setattr("defectory.drivers.kinds.KINDS._added", {"redness": names["redness"]})
        image = np.random.default_rng(0).integers(0, 255, (48, 70, 3)).astype(np.uint8)
        assert extract_driver(image, kind="redness").shape == image.shape


def test_every_page_of_commands_is_looked_at() -> None:
    assert len(blocks("console")) >= 15
    assert len(blocks("python")) >= 4
    assert len(blocks("toml")) >= 3


def test_the_architecture_page_has_every_group_and_layer() -> None:
    source = ROOT / "src" / "defectory"
    groups = {
        group
        for file in source.rglob("*.py")
        for group in re.findall(
            r"^[A-Z_]+: Registry\[.+\] = Registry\(\s*\"(\w+)\"", file.read_text("utf-8"), re.MULTILINE
        )
    }
    assert len(groups) >= 11
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert {group for group in groups if f"`defectory.{group}`" not in page or f"`{group}`" not in guide} == set()
    names = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {name for name in names if not name.startswith("__") and f"`{name}`" not in page} == set()
