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
    """Compare every file of a run with its digest, and check its split certificate again. Nothing is written.

    Exit code 1 if a file is missing or changed, 2 if the split certificate is broken.
    """
    from defectory.cli.show import say, say_json, show_table

    opened = open_project(project, overrides=override)
    found, certificate = opened.verify(), opened.check_certificate()
    damaged = [finding for finding in found if finding.state == "damaged"]
    is_broken = certificate is not None and bool(certificate.broken)
    # files that are merely damaged are made anew, and the certificate with them
    is_crossed = certificate is not None and (bool(certificate.crossed) or (is_broken and not damaged))
    code = 2 if is_crossed else 1 if damaged else 0
    verdict = "broken" if is_crossed else "not confirmed" if is_broken else "holds"
    if as_json:
        for finding in found:
            row = {**asdict(finding), "folder": str(opened.run_folder)}
            if finding.stage == "certify" and certificate is not None:
                row["certificate"] = {"verdict": verdict, **asdict(certificate)}
            say_json(row)
        raise typer.Exit(code)

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
    else:
        whole = sum(finding.state == "whole" for finding in found)
        say(f"{whole} whole, {len(found) - whole} not run or not finished")
    if certificate is None:
        say("no split certificate yet; the stage `certify` makes it")
    elif is_broken:
        for problem in certificate.broken:
            say(f"split certificate {verdict}: {problem}")
    else:
        say(f"split certificate holds for {certificate.num_uses} uses, seal {certificate.seal}")
    raise typer.Exit(code)
