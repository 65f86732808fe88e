"""Defines the verbs for bases and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defectory.cli.base_verbs import list_bases, pull_base, show_base
from defectory.cli.options import JsonOption

base_app = typer.Typer(no_args_is_help=True, help="Bases: list, pull, verify, info, score, pretrain, teach, world.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    base_app.command("list")(list_bases)
    base_app.command("pull")(pull_base)
    base_app.command("verify")(verify_base)
    base_app.command("info")(show_base)
    base_app.command("score")(score_base)
    base_app.command("pretrain")(pretrain_base)
    base_app.command("teach")(teach_base)
    base_app.command("world")(show_world)
    app.add_typer(base_app, name="base")
    app.command("doctor")(doctor)


@base_app.callback()
def _base() -> None:
    """Bases: list, pull, verify, info, score, pretrain, teach, world."""


def verify_base(
    name_or_path: Annotated[str, typer.Argument(help="`embedded`, or the path of a base.")] = "embedded",
) -> None:
    """Check that a base is complete and its family supported: parts, safetensors, tokenizer, digests."""
    from defectory.api.bases import verify_base as verify
    from defectory.cli.show import say

    folder, facts = verify(name_or_path)
    experimental = ", experimental" if facts.is_experimental else ""
    say(f"{folder}: whole; {facts.family}, tiles of {facts.tile_px} px, predicts {facts.prediction_type}{experimental}")


def score_base(
    name_or_path: Annotated[
        str, typer.Argument(help="`embedded`, or the path of a base that was made by `base pretrain`.")
    ] = "embedded",
    out: Annotated[Path, typer.Option("--out", help="Folder for images, classifier, samples and scores.")] = Path(
        "base-score"
    ),
    override: Annotated[
        list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="For example num_samples=200.")
    ] = None,
) -> None:
    """Score a base on procedural images: how well samples match captions, and how close they are to images."""
    from defectory.api.bases import score_base as score
    from defectory.cli.show import say, show_events

    show_events(score(name_or_path, out=out, overrides=override or ()))
    say(f"{out / 'scores.json'}, {out / 'samples.png'}")


def show_world(out: Annotated[Path, typer.Option("--out", help="Folder for the sheets.")] = Path("world")) -> None:
    """Draw sheets of the procedural world that bases are trained on, and of the borescope demo, unseen in training."""
    from defectory.api.bases import draw_world
    from defectory.cli.show import say

    for sheet in draw_world(out):
        say(sheet)


def pretrain_base(
    out: Annotated[Path, typer.Option("--out", help="Folder for base/, encoder/ and segmenter/.")],
    work: Annotated[Path | None, typer.Option("--work", help="Folder for corpus and checkpoints; <out>/work.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", metavar="KEY=VALUE", help="For example diffusion.num_steps=8000."),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", help="cpu, cuda, cuda:1 ...; other than a CPU has larger batches and fewer steps."),
    ] = "cpu",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of corpus and training.")] = 0,
) -> None:
    """Train an embedded base and its companions from procedural images alone.

    The base consists of VAE, text encoder, UNet and control network. Its companions are the encoder behind KID and the
    initial weights of the light segmenter.
    """
    from defectory.api.bases import pretrain_base as pretrain
    from defectory.cli.show import say, show_events

    show_events(pretrain(out=out, work=work, overrides=override or (), device=device, seed=seed))
    say(f'use it with `base = "{out / "base"}"` in a project file')


def teach_base(
    word: Annotated[
        str, typer.Argument(help="A defect of the procedural world that the base draws badly, for example dent.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the base that knows it.")],
    base: Annotated[
        str, typer.Option("--base", help="`embedded`, or the path of a base that was made by `base pretrain`.")
    ] = "embedded",
    work: Annotated[Path | None, typer.Option("--work", help="Folder for images and checkpoint; <out>.work.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", metavar="KEY=VALUE", help="For example training.num_steps=500."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
) -> None:
    """Teach a base one word of the procedural world. Other texts change by a few percent (decision 044)."""
    from defectory.api.bases import teach_base as teach
    from defectory.cli.show import say, show_work

    samples = show_work(teach(word, out=out, base=base, work=work, overrides=override or (), device=device))
    say(f"samples: {samples / 'before.png'}, {samples / 'after.png'}")
    say(f'use it with `base = "{out}"` in a project file')


def doctor(
    project: Annotated[
        Path | None, typer.Argument(help="Project file to plan; the demo if none is given.", metavar="[PROJECT]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, say which presets fit it, and plan a project: time, memory and disk of every stage."""
    from dataclasses import asdict

    from defectory.api.machine import check_machine, plan_demo, presets_here
    from defectory.cli.estimates import show_plan, values_of
    from defectory.cli.show import say, say_json, show_table

    if project is not None:
        from defectory.api.project import Project

        opened = Project.open(project)
        machine, estimate, what = check_machine(), opened.estimate(), opened.config.name
    else:
        machine, (estimate, is_short) = check_machine(), plan_demo()
        what = "the demo, shortened for this machine" if is_short else "the demo"
    fits = presets_here()
    if as_json:
        say_json({"machine": machine, "presets": [asdict(fit) for fit in fits], "plan": values_of(estimate)})
        return
    show_table("This machine", ("what", "found"), list(machine.items()))
    show_table(
        "Presets",
        ("preset", "for", "fits", "needs"),
        [(f.preset, f.purpose, "yes" if f.fits else "no", f.why) for f in fits],
    )
    show_plan(what, estimate)
    best = [fit.preset for fit in fits if fit.fits][-1]
    say(f"for your own data: `defectory init project.toml --data annotations.json --preset {best}`")
