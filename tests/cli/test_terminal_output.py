"""Text from data in a terminal: shown as it is, in any width and encoding; and whatever ends a command is one line."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import defectory.cli
from defectory.cli.failures import line_and_code
from defectory.cli.main import main
from defectory.cli.show import show_table
from defectory.errors import ConfigError, ImageError
from defectory.images.save import save_png

Cli = Callable[..., Any]
MESSY = (
    "weld [/x]",
    "[red]burn[/red]",
    "esc\x1b[31mape",
    "two\nlines",
    "Riß 裂缝",
    "rtl\u202egnp",
    "[bold",
    "\\[x]",
    "bell\a",
)
SHOWN = (
    "weld [/x]",
    "[red]burn[/red]",
    "esc\\x1b[31mape",
    "two\\nlines",
    "Riß 裂缝",
    "rtl\\u202egnp",
    "[bold",
    "\\[x]",
    "bell\\x07",
)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A COCO file whose class and file names are of every kind that breaks terminals."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(MESSY) + 1):
        name = f"[i]{index} ü裂.png"
        save_png(tmp_path / "set" / name, np.full((40, 56, 3), 90 + index, np.uint8))
        images.append({"id": index, "file_name": name, "height": 40, "width": 56})
        if index < len(MESSY):
            box = [10, 10, 30, 10, 30, 25, 10, 25]
            annotations.append(
                {"id": index, "image_id": index, "category_id": index + 1, "segmentation": [box], "iscrowd": 0}
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(MESSY)]
    file = tmp_path / "set" / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def test_names_are_shown_as_they_are_and_move_no_cursor(defectory: Cli, messy: Path, tmp_path: Path) -> None:
    done = defectory("import", messy, "--out", tmp_path / "data")
    assert done.code == 0, done.err
    assert not CONTROL.search(done.out)
    for verb in (("check", tmp_path / "data"), ("check", messy)):
        done = defectory(*verb)
        assert done.code == 0, done.err
        assert not CONTROL.search(done.out)
        for name in SHOWN:
            assert f"class {name}" in done.out


def test_json_is_ascii_lines_alone(defectory: Cli, messy: Path, tmp_path: Path) -> None:
    done = defectory("import", messy, "--out", tmp_path / "data", "--json")
    assert json.loads(done.out)["classes"] == list(MESSY)
    for verb in (("check", tmp_path / "data", "--json"), ("check", messy, "--json")):
        done = defectory(*verb)
        assert done.out.isascii()
        assert list(json.loads(done.out)["instances_per_class"]) == list(MESSY)


def test_a_dry_run_with_json_prints_json_alone(defectory: Cli, tmp_path: Path) -> None:
    file = tmp_path / "project.toml"
    file.write_text("[data]\npath = 'a.json'\n")
    for verb in (("run", file), ("synthesize", file), ("run", file, "--only", "segment")):
        *lines, last = [json.loads(line) for line in defectory(*verb, "--dry-run", "--json").out.splitlines()]
        assert lines
        assert {line["event"] for line in lines} == {"StageState"}
        assert last["event"] == "Estimate"
        assert {line["state"] for line in lines} == {"to be run"}
    assert defectory("run", file, "--only", "nothing", "--dry-run").code == 2


def test_an_error_with_json_is_a_line_on_standard_error(defectory: Cli, tmp_path: Path) -> None:
    done = defectory("import", tmp_path / "no.json", "--out", tmp_path / "data", "--json")
    assert (done.code, done.out) == (2, "")
    assert "no.json" in done.error_line


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_tables_lose_nothing_and_stay_within_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [
        (name, f"{number} instances in {number} images", "runs/a/very/long/path/of/a/folder", "x")
        for number, name in enumerate(SHOWN)
    ]
    for columns in (2, 4):
        show_table(
            "A title that is longer than forty columns are wide",
            ("what", "found", "where", "mark")[:columns],
            [r[:columns] for r in rows],
        )
        out = capsys.readouterr().out
        assert max(len(line) for line in out.splitlines()) <= width
        # folded cells are read down their column, rows that became lists from start to end
        read = [line.split("│")[1:-1] for line in out.splitlines() if "│" in line]
        texts = ["".join(of) for of in zip(*read, strict=True)] if read else [out]
        letters = [re.sub(r"\s", "", text) for text in texts]
        for row in rows:
            for index, cell in enumerate(row[:columns]):
                assert re.sub(r"\s", "", cell) in letters[index if read else 0]
        # no column is squeezed to a letter a line
        assert len(out.splitlines()) < len(rows) * columns * (12 if width == 20 else 5) + 12


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table("t", ("what", "found"), [("layout", "x" * 300)])
    assert "x" * 300 in capsys.readouterr().out


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.long) for name in ("cp1252", "utf-8", "latin-1"))]
)
def test_terminals_of_any_encoding_are_written_to(messy: Path, tmp_path: Path, encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60", "LC_ALL": "C", "FORCE_COLOR": "1"}
    command = [sys.executable, "-m", "defectory.cli.main"]
    for args in (
        ("import", messy, "--out", tmp_path / "data"),
        ("check", tmp_path / "data"),
        ("check", tmp_path / "Riß 裂缝"),
        ("--help",),
    ):
        done = subprocess.run([*command, *map(str, args)], env=env, capture_output=True, check=False)
        text = (done.stdout + done.stderr).decode(encoding)
        assert "Traceback" not in text
        assert done.returncode == (2 if "Ri" in str(args[-1]) else 0), text


def test_verbs_print_through_one_door() -> None:
    """A bare print, or rich's, would let a name through raw."""
    folder = Path(defectory.cli.__file__).parent
    for file in folder.glob("*.py"):
        if file.name in ("show.py", "study_show.py", "main.py"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = {call.id for call in calls if isinstance(call, ast.Name)} | {
            call.attr for call in calls if isinstance(call, ast.Attribute)
        }
        assert not names & {"print", "echo", "secho", "Console"}, file.name


def test_help_needs_no_torch_and_is_there_for_every_verb(defectory: Cli) -> None:
    for verb in (
        "import",
        "check",
        "init",
        "run",
        "demo",
        "predict",
        "insert",
        "drivers tune",
        "masks review",
        "base verify",
        "base teach",
    ):
        done = defectory(*verb.split(), "--help")
        assert (done.code, "Usage" in done.out) == (0, True)
    code = (
        "import sys, time; sys.argv = ['defectory', 'import', '--help']\n"
        "from defectory.cli.main import main\n"
        "main()\n"
        "assert not {'torch', 'diffusers', 'transformers', 'cv2', 'numpy', 'scipy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_formats_that_help_lists_are_those_of_the_registry() -> None:
    from defectory.cli.data_verbs import FORMAT_NAMES
    from defectory.formats.registry import formats

    assert [known.name for known in formats()] == list(FORMAT_NAMES)


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x.png"),
            "out/x.png: no space left on device; free space",
            2,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.png"),
            "a.png: permission denied; change its permissions",
            2,
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9000), "file name too long; choose a shorter name", 2),
        (OSError(errno.EROFS, "Read-only file system", b"a\xff"), "read-only file system; choose a place", 2),
        (OSError("odd"), "file system: odd; check", 2),
        (MemoryError(), "out of memory", 1),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            "out of memory (CUDA out of memory. Tried",
            1,
        ),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply", 2),
        (
            UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"),
            "cannot be written in the encoding",
            2,
        ),
        (ImageError("a\nb\x1b[2J.png", "x", "y"), "a\\nb\\x1b[2J.png: x; y", 2),
        (ConfigError("a", "b", "c"), "a: b; c", 2),
        (KeyboardInterrupt(), "interrupted; run the same command again", 130),
        (
            ZeroDivisionError("division by zero"),
            "unexpected ZeroDivisionError: division by zero; this is a fault of Defectory",
            1,
        ),
        (ValueError("two\nlines"), "unexpected ValueError: two;", 1),
    ],
)
def test_whatever_ends_a_command_is_one_line(
    error: BaseException, said: str, code: int, defectory: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line, found = line_and_code(error)
    assert said in line
    assert (found, "\n" in line, CONTROL.search(line)) == (code, False, None)
    assert len(line) < 2100

    def fail(*_args: object, **_more: object) -> Any:
        raise error

    from defectory.dataset import importer

    monkeypatch.setattr(importer, "import_dataset", fail)
    done = defectory("import", tmp_path, "--out", tmp_path / "data")
    assert (done.code, said.split(";")[0] in done.error_line) == (code, True)


def test_developers_get_the_traceback(defectory: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEFECTORY_DEBUG", "1")
    done = defectory("check", tmp_path / "nowhere")
    assert done.code == 2
    assert "Traceback" in done.err
    file = tmp_path / "project.toml"
    file.write_text("[data]\npath = 'a.json'\n")
    # and it is no setting
    assert defectory("run", file, "--dry-run").code == 0


@pytest.mark.parametrize(
    "args",
    [
        ("--nope",),
        ("run", "--seed", "x"),
        ("import",),
        ("nothing",),
        ("insert", "a", "--out", "b", "--count", "0"),
        ("base", "x[/y]"),
    ],
)
def test_a_wrong_command_line_is_one_line(defectory: Cli, args: tuple[str, ...]) -> None:
    done = defectory(*args)
    assert done.code == 2
    assert "--help`" in done.error_line


def test_a_closed_pipe_and_a_full_device_are_no_traceback(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m defectory.cli.main --help | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "defectory.cli.main", "base", "list"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert (done.returncode, "Traceback" in done.stderr, "no space left" in done.stderr) == (2, False, True)


def test_main_makes_the_streams_forgiving_before_anything_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["defectory", "--version"])
    main()
    print("Riß", file=stream, flush=True)
    assert b"Ri\\xdf" in stream.buffer.getvalue()  # type: ignore[attr-defined]
