"""Defines the command `defectory`: collects the verbs, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from importlib import import_module

import typer

from defectory.cli.failures import INTERRUPTED
from defectory.cli.quiet import keep_quiet
from defectory.launch import leads
from defectory.memory import collect_garbage_rarely, keep_freed_memory

VERBS = (
    # in the order of `--help`
    "project_verbs",
    "insert_verb",
    "export_verb",
    "study_verb",
    "run_verbs",
    "data_verbs",
    "driver_verbs",
    "tool_verbs",
)
"""Modules that define verbs. Each has a function `register`; the verbs import their work when they are called."""

app = typer.Typer(
    name="defectory",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from defectory import __version__

        print(f"defectory {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Teach Stable Diffusion your parts, draw labelled defects on them, and measure whether that helps your
    segmenter.
    """


for module in VERBS:
    import_module(f"defectory.cli.{module}").register(app)


def main() -> None:
    """Run the command line; exit with 0 done, 1 failed, 2 bad input, 130 interrupted (resumable).

    Every error is one line on standard error; `DEFECTORY_DEBUG=1` adds the traceback. Of several processes that a
    launcher started, the first one runs the command.
    """
    collect_garbage_rarely()
    keep_freed_memory()
    keep_quiet()
    make_streams_forgiving()
    try:
        if not leads(os.environ):
            return
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_told(error))
    if isinstance(code, int) and code:
        # typer turns Ctrl-C into an exit code
        sys.exit(_told(KeyboardInterrupt()) if code == INTERRUPTED else code)


def make_streams_forgiving() -> None:
    """Make standard output and error escape characters that their encoding lacks (ASCII, Windows code pages)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _told(error: BaseException) -> int:
    """Print what ended the command and return the exit code."""
    from defectory.cli.failures import line_and_code
    from defectory.errors import wants_traceback

    if type(error).__name__ == "NoArgsIsHelpError":  # its help has been printed already
        return 2
    if wants_traceback():
        traceback.print_exception(error)
    line, code = line_and_code(error)
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed or its disk full
        print(line, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
