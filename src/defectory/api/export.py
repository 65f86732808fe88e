"""Exports a project's images for training, and its segmenters, in formats that other tools open."""

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


def export_onnx(project: Project, segmenter: str, *, out: Path | str) -> Generator[Event, None, None]:
    """Write a trained segmenter as ONNX, checked against the segmenter itself on validation images.

    Name, packages and `out` are checked now. The work is done while its events are read: loop over them, or use
    `finish`.

    Args:
        project: with the segmenter trained by the time the events are read.
        segmenter: its name, such as `real-seed0`.
        out: folder that gets `segmenter.onnx` and `segmenter.json`: new, empty, or an earlier such export, which is
            replaced as a whole.

    Raises:
        ConfigError: there is no such segmenter, its family cannot be written, or a package is missing.
        OutputError: `out` holds files that no such export made.
        StageError: the ONNX file finds something else than the segmenter; nothing is written.
        WeightsError: the segmenter cannot be read.
    """
    from defectory.tools.export_onnx import export_onnx as work
    from defectory.tools.export_onnx import require_onnx

    require_onnx(project.run_values, segmenter, Path(out))
    return work(project.run_values, segmenter, Path(out))


def segmenter_stage(project: Project, segmenter: str) -> str:
    """Return the name of the stage that trains a segmenter, such as `segment-real-seed0` for `real-seed0`.

    Raises:
        ConfigError: the project trains no such segmenter.
    """
    from defectory.tools.export_onnx import segmenter_stage as stage_of

    return stage_of(project.run_values, segmenter).name
