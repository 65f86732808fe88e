"""The command `defectory`: gathers the verbs, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from defectory.cli import data_verbs, project_verbs, tool_verbs
from defectory.memory import keep_freed_memory

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""No verb touches the network; dependencies are told not to either."""

app = typer.Typer(name="defectory", no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from defectory import __version__

        print(f"defectory {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True)) -> None:
    """Teach Stable Diffusion your parts, draw labelled defects on them, and measure whether that helps your segmenter."""


project_verbs.register(app)
data_verbs.register(app)
tool_verbs.register(app)


def main() -> None:
    """Run the command line; exit with 0 done, 1 failed, 2 bad input, 130 interrupted (resumable)."""
    keep_freed_memory()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from defectory.errors import DefectoryError

    try:
        app()
    except DefectoryError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
