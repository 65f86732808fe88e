"""Exports a project's images for training in formats that other tools open."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Literal

from defectory.api.project import Project
from defectory.events import Event


def export_formats() -> tuple[str, ...]:
    """Return the names of the formats that `export` writes, those of installed packages included."""
    from defectory.formats.writers.registry import WRITERS

    return WRITERS.names()


def require_format(name: str) -> None:
    """Check that a format is known.

    Raises:
        ConfigError: it is not; the message lists those that are.
    """
    from defectory.formats.writers.registry import writer_named

    writer_named(name)


def export(
    project: Project,
    format: str,  # noqa: A002  # as the option is called
    *,
    out: Path | str,
    with_real: bool = False,
    real: Literal["tiles", "images"] | None = None,
) -> Generator[Event, None, None]:
    """Write the accepted drafts with their labels as a folder in a format that other tools open.

    Format and `out` are checked now. The work is done while its events are read: loop over them, or use `finish`.

    Args:
        project: run up to `export` by the time the events are read.
        format: one of `export_formats()`.
        out: folder: new, empty, or an earlier export, which is replaced as a whole.
        with_real: add the real training images; never those of val and test.
        real: real images as `tiles`, as the segmenters see them, or as whole `images`. None: as the drafts are.

    Raises:
        ConfigError: the format is not known, or cannot hold the set.
        FirewallError: an image of val or test, or an unknown one, would be exported.
        OutputError: `out` holds files that no export wrote, or the project's own sources.
        StageError: an input stage of the run is damaged.
    """
    from defectory.formats.writers.registry import writer_named
    from defectory.tools.export import export_project, require_export_folder

    writer = writer_named(format)
    require_export_folder(project.run_values, Path(out))
    form = (real or "as drafts") if with_real else None
    return export_project(project.run_values, writer, Path(out), real=form)
