"""Defines the verbs that bring a base to this machine and describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defectory.cli.options import JsonOption


def list_bases() -> None:
    """List the bases known by name, and those on this machine."""
    from defectory.api.bases import find_bases
    from defectory.api.bases import list_bases as known
    from defectory.cli.show import say, show_table

    here = {base.name: base for base in find_bases()}
    show_table(
        "Known bases",
        ("name", "here", "tile px", "what", "licence"),
        [(b.name, _state(here, b.name), b.tile_px, b.description, b.licence) for b in known()],
    )
    show_table(
        "On this machine",
        ("name", "folder", "state"),
        [(b.name, b.folder, "ready" if b.problem is None else b.problem) for b in here.values()],
    )
    say("`defectory base pull NAME` brings another one here. `base` also takes the path of a folder in")
    say("Stable Diffusion layout, and any `owner/model` that was pulled.")


def _state(here: object, name: str) -> str:
    base = here.get(name) if isinstance(here, dict) else None
    return "no" if base is None else "yes" if base.problem is None else "not wholly"


def pull_base(
    name: Annotated[str, typer.Argument(help="A name of `base list`, or owner/model of the model hub.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Copy from this folder instead, for example from a stick; no network is used."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the hub; main if none is given.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Take weights of half precision (fp16) where there are some: half the bytes.")
    ] = False,
) -> None:
    """Bring a base to this machine and check every file: the only verb that uses a network.

    The base goes to DEFECTORY_BASES, or ~/.local/share/defectory/bases. HF_ENDPOINT (a mirror), HF_HOME, HF_TOKEN and
    HF_HUB_OFFLINE are honoured. An interrupted pull goes on when it is called again.
    """
    from defectory.cli.quiet import allow_network

    if source is None:
        allow_network()
    from defectory.api.bases import pull_base as pull
    from defectory.cli.show import say, show_work

    folder = show_work(pull(name, source=source, revision=revision, half=half))
    say(f'{folder}: use it with `base = "{name}"` in a project file')


def show_base(
    name_or_path: Annotated[str, typer.Argument(help="Name, or path of a base.")] = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Describe a base: family, native size, what it predicts, parts with parameters and sizes, licence."""
    from dataclasses import asdict

    from defectory.api.bases import describe_base
    from defectory.cli.show import say, say_json, show_table

    found = describe_base(name_or_path)
    facts = found.facts
    if as_json:
        parts = [asdict(part) for part in found.parts]
        about = {"folder": str(found.folder), "licence": found.licence, "origin": found.origin}
        say_json({**about, **facts.model_dump(), "parts": parts})
        return
    experimental = ", experimental" if facts.is_experimental else ""
    say(f"{found.folder}: {facts.family}, tiles of {facts.tile_px} px, predicts {facts.prediction_type}{experimental}")
    show_table(
        "Parts",
        ("part", "class", "parameters", "MB", "numbers"),
        [
            (part.name, part.kind, f"{part.num_parameters / 1e6:.2f} M", f"{part.num_bytes / 1e6:.1f}", part.dtype)
            for part in found.parts
        ],
    )
    say(f"licence: {found.licence}")
    if found.origin is not None:
        say(f"from: {found.origin}")
