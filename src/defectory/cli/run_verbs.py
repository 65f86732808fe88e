"""Defines the verbs for run folders."""

from __future__ import annotations

from dataclasses import asdict

import typer

from defectory.cli.options import PROJECT_FILE, JsonOption, OverrideOption, ProjectArgument, open_project


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("verify")(verify)


def verify(
    project: ProjectArgument = PROJECT_FILE, override: OverrideOption = None, as_json: JsonOption = False
) -> None:
    """Compare every file of a run with its digest; exit code 1 where one is missing or changed. Nothing is written."""
    from defectory.cli.show import say, say_json, show_table

    opened = open_project(project, overrides=override)
    found = opened.verify()
    damaged = [finding for finding in found if finding.state == "damaged"]
    if as_json:
        for finding in found:
            say_json({**asdict(finding), "folder": str(opened.run_folder)})
        raise typer.Exit(1 if damaged else 0)

    def told(count: int, what: str) -> str:
        return f"{count} {what}" if count else ""

    rows = [
        (finding.stage, finding.state, ", ".join(filter(None, [finding.damage, told(len(finding.extra), "of others")])))
        for finding in found
    ]
    show_table(str(opened.run_folder), ("stage", "state", "files"), rows)
    if damaged:
        say(
            f"{len(damaged)} damaged; `defectory run {project}` makes them anew, and what follows from them where it "
            "differs"
        )
        raise typer.Exit(1)
    whole = sum(finding.state == "whole" for finding in found)
    say(f"{whole} whole, {len(found) - whole} not run or not finished")
