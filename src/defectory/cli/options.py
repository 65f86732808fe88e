"""Options that verbs share, and how a project is opened from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

if TYPE_CHECKING:
    from defectory.pipeline.stage import Project

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="Project file.")]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Set any setting, for example synthesis.num_images=50."),
]
PresetOption = Annotated[str | None, typer.Option("--preset", help="demo, demo-full, cpu or gpu-sd15.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the whole project.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")]

RESERVED = ("DEFECTORY_BASES", "DEFECTORY_DEBUG")
"""Variables of our name that are no settings."""


class Layers(TypedDict):
    """Settings above a project file."""

    environment: dict[str, str]
    overrides: list[str]


def layers_of(overrides: list[str] | None, *, seed: int | None, device: str | None) -> Layers:
    """Return what environment and command line set, as `resolve` takes it."""
    wanted = list(overrides or [])
    wanted += [f"seed={seed}"] if seed is not None else []
    wanted += [f'device="{device}"'] if device is not None else []
    return Layers(
        environment={name: value for name, value in os.environ.items() if name not in RESERVED}, overrides=wanted
    )


def open_project(
    file: Path,
    *,
    overrides: list[str] | None = None,
    preset: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    save: bool = True,
) -> Project:
    """Resolve a project file with command line and environment, and save what came out with the run.

    Raises:
        ConfigError: an unknown or wrong setting.
        OutputError: the run folder cannot be written.
    """
    from defectory import __version__
    from defectory.config.resolve import resolve
    from defectory.engine.backbones.known import is_known
    from defectory.errors import ConfigError
    from defectory.pipeline.stage import Project

    resolved = resolve(project_file=file, preset=preset, **layers_of(overrides, seed=seed, device=device))
    try:
        source = file.resolve().parent
        base = resolved.config.base
        if not is_known(base):
            resolved = resolved.with_value("base", str(source / Path(base).expanduser()))
        folder = source / resolved.config.out
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody`, a link to itself
        raise ConfigError(file, f"names a path that cannot be looked up ({error})", "correct `base` or `out`") from None
    if save:
        from defectory.lock import run_lock
        from defectory.pipeline.run import claim_run

        if Path(resolved.config.base).is_dir():
            from defectory.engine.backbones.verify import verify_layout

            # of another family, or torn: told before anything is written; one that is not there at present may not be
            # needed
            verify_layout(Path(resolved.config.base))
        claim_run(folder)
        with run_lock(folder):
            resolved.save(folder / "project.json", version=__version__)
    return Project(config=resolved.config, folder=folder, source_folder=source)


def path_from_project(path: Path, project_file: Path) -> str:
    """Return a path that a user gave from the current folder as it is written into a project file: from that file's
    folder on.

    It is relative and has `/` on every system where both are on one drive, else absolute.
    """
    home = project_file.absolute().parent
    try:
        return Path(os.path.relpath(path.expanduser().absolute(), home)).as_posix()
    except (ValueError, RuntimeError):  # another drive; a home folder that is not known
        return path.absolute().as_posix()
