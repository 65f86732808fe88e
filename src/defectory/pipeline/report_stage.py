"""The report stage."""

from __future__ import annotations

from collections.abc import Iterator

from defectory.pipeline.stage import Progress, Project


def report_settings(project: Project) -> object:
    """Give the settings the report depends on."""
    return project.config.name


def run_report(project: Project) -> Iterator[Progress | str]:
    """Write the report."""
    yield project.config.name
