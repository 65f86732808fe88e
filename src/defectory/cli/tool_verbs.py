"""Defines the verbs for bases and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

base_app = typer.Typer(no_args_is_help=True, help="Bases: list, verify, score, pretrain, teach, world.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    base_app.command("list")(list_bases)
    base_app.command("verify")(verify_base)
    base_app.command("score")(score_base)
    base_app.command("pretrain")(pretrain_base)
    base_app.command("teach")(teach_base)
    base_app.command("world")(show_world)
    app.add_typer(base_app, name="base")
    app.command("doctor")(doctor)


@base_app.callback()
def _base() -> None:
    """Bases: list, verify, score, pretrain, teach, world."""


def list_bases() -> None:
    """List the bases known by name."""
    from defectory.cli.show import say, show_table
    from defectory.engine.backbones.known import KNOWN_BASES

    show_table(
        "Known bases",
        ("name", "tile px", "what", "licence"),
        [(b.name, b.tile_px, b.description, b.licence) for b in KNOWN_BASES],
    )
    say("Any other base: the path of a folder in Stable Diffusion layout (1.x or 2.x).")


def verify_base(
    name_or_path: Annotated[str, typer.Argument(help="`embedded`, or the path of a base.")] = "embedded",
) -> None:
    """Check that a base is complete and its family supported: parts, safetensors, tokenizer, digests."""
    from defectory.cli.show import say
    from defectory.engine.backbones.known import resolve_base
    from defectory.engine.backbones.verify import verify

    folder = resolve_base(name_or_path)
    facts = verify(folder)
    say(f"{folder}: whole; {facts.family}, tiles of {facts.tile_px} px, predicts {facts.prediction_type}")


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
    from defectory.cli.show import say, show_events
    from defectory.engine.backbones.known import resolve_base
    from defectory.folders.claims import require_claimable
    from defectory.tools.pretrain import run_score, score_config

    config, base = score_config(override or []), resolve_base(name_or_path)
    require_claimable(out, kind="base-score")
    require_outside(base, out)
    show_events(run_score(config, base=base, out=out))
    say(f"{out / 'scores.json'}, {out / 'samples.png'}")


def show_world(out: Annotated[Path, typer.Option("--out", help="Folder for the sheets.")] = Path("world")) -> None:
    """Draw sheets of the procedural world that bases are trained on, and of the borescope demo, unseen in training."""
    from defectory.cli.show import say
    from defectory.folders.swap import atomic_folder
    from defectory.images.save import save_jpeg
    from defectory.procedural.gallery import SHEETS, borescope_sheet, world_sheet

    with atomic_folder(out, kind="world") as folder:
        for name in SHEETS:
            save_jpeg(folder / f"{name}.jpg", world_sheet(name))
        save_jpeg(folder / "borescope.jpg", borescope_sheet())
    for name in (*SHEETS, "borescope"):
        say(out / f"{name}.jpg")


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
    from defectory.cli.show import say, show_events
    from defectory.folders.claims import require_claimable
    from defectory.tools.pretrain import pretrain_config, run_pretrain

    config = pretrain_config(override or [], device=device, seed=seed)
    require_claimable(out, kind="pretrain")
    if work is not None:
        require_claimable(work, kind="pretrain-work")
    show_events(run_pretrain(config, out=out, work=work or out / "work"))
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
    from defectory.cli.show import say, show_events
    from defectory.engine.backbones.known import resolve_base
    from defectory.folders.claims import require_claimable, require_replaceable
    from defectory.tools.pretrain import run_teach, word_config

    config, start = word_config(word, override or [], device=device), resolve_base(base)
    require_replaceable(out, kind="base", sources=[start])
    require_outside(start, out)
    work = work or out.with_name(f"{out.name}.work")
    require_claimable(work, kind="pretrain-work")
    show_events(run_teach(config, base=start, out=out, work=work))
    say(f"samples: {work / 'before.png'}, {work / 'after.png'}")
    say(f'use it with `base = "{out}"` in a project file')


def require_outside(base: Path, out: Path) -> None:
    """Refuse to write into a base folder that must only be read.

    Raises:
        OutputError: `out` is the folder or lies in it.
    """
    from defectory.errors import OutputError

    if out.resolve().is_relative_to(base.resolve()):
        raise OutputError(out, f"lies in the base {base}, which is only read", "give another folder")


def doctor() -> None:
    """Check whether this machine can run Defectory: versions, devices, memory, disk, embedded base."""
    import os
    import platform
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from defectory import __version__
    from defectory.cli.show import show_table
    from defectory.engine.backbones.known import embedded_folder
    from defectory.engine.backbones.verify import verify

    def version_of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "missing"

    rows: list[tuple[str, str]] = [("defectory", __version__), ("python", platform.python_version())]
    rows += [
        (name, version_of(name)) for name in ("torch", "torchvision", "diffusers", "transformers", "faster-coco-eval")
    ]
    rows.append(("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            rows.append((f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"))
    else:
        rows.append(("gpu", "none; the embedded base runs on the CPU, Stable Diffusion needs a GPU"))
    if hasattr(os, "sysconf"):
        rows.append(("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"))
    rows.append(("disk here", f"{shutil.disk_usage(Path()).free / 2**30:.1f} GiB free"))
    verify(embedded_folder())
    rows.append(("embedded base", "whole"))
    show_table("Doctor", ("what", "found"), rows)
