"""Verbs that run a project or one of its stages."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from defectory.cli.options import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverrideOption,
    PresetOption,
    SeedOption,
    layers_of,
    open_project,
    path_from_project,
)

STAGE_VERBS = {
    "learn-concept": (
        "learn-concept",
        "Phase 1: teach the base what your parts look like (DreamBooth with prior preservation).",
    ),
    "learn-condition": ("learn-condition", "Phase 2: teach a control network to obey drivers."),
    "plan": ("plan", "Write the synthesis plan: pool image, augmentation, masks, prompt and seed of every draft."),
    "calibrate": ("calibrate", "Choose how strongly the masks of each class are drawn: as much as in train tiles."),
    "synthesize": ("synthesize", "Draw the drafts of the plan, each with its counterfactual half."),
    "curate": ("curate", "Hold each draft against its label and against real tiles; accept or reject it."),
    "segment": ("segment", "Train the segmenter in all its arms."),
    "evaluate": ("evaluate", "Gather all scores."),
    "report": ("report", "Write the report, one self-contained HTML file."),
    "finalize": ("finalize", "Write the finished pipeline, which plain diffusers loads."),
}
"""Verb -> (stage, help)."""


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("demo")(demo)
    app.command("init")(init)
    app.command("run")(run)
    for verb, (stage, text) in STAGE_VERBS.items():
        function = synthesize if verb == "synthesize" else _stage_verb(stage)
        app.command(verb, help=f"{text} Stages that it needs are run first where they are not up to date.")(function)
    app.command("insert")(insert)


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds and longer phases; some 70 minutes on one core.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; runs/demo, or runs/demo-full.")] = None,
    override: OverrideOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do all of it on a procedural borescope data set: data, both phases, synthesis, curation, segmenters, report."""
    from defectory.config.demo import demo_project, write_demo
    from defectory.config.resolve import resolve
    from defectory.folders import require_claimable

    preset = "demo-full" if full else "demo"
    out = out or Path("runs") / preset
    # a wrong setting or folder is told before anything is written
    resolve(project=demo_project(preset), preset=preset, **layers_of(override, seed=seed, device=device))
    require_claimable(out, kind="demo", also=("run",))
    run_stages(write_demo(out, preset), None, override, None, seed, device, dry_run, as_json)


def init(
    file: Annotated[Path, typer.Argument(help="Project file to write.")] = Path("project.toml"),
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Annotation file or folder of a data set, as `defectory import` takes it, from the current folder.",
        ),
    ] = Path("annotations.json"),
    defect_free: Annotated[
        Path | None, typer.Option("--defect-free", help="Folder of further images, all without defects.")
    ] = None,
    preset: PresetOption = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace a project file that is there.")] = False,
) -> None:
    """Write a commented project file with every setting."""
    from defectory.cli.show import say
    from defectory.config.presets import PRESETS
    from defectory.config.resolve import resolve
    from defectory.config.template import project_template
    from defectory.errors import ConfigError
    from defectory.filenames import file_name_of
    from defectory.files import write_text
    from defectory.terminal import printable

    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}", "no such preset", f"choose among {', '.join(PRESETS)}")
    if file.is_dir():
        raise ConfigError(file, "is a folder", f"name the file, for example {file / 'project.toml'}")
    if os.path.lexists(file):
        if not force:
            raise ConfigError(file, "is there already", "give another name, or --force to replace it")
        _require_project_file(file)
    name = printable(file.resolve().parent.name or "project")
    values: dict[str, Any] = {
        "name": name,
        "out": f"runs/{file_name_of(name)}",
        "data": {
            "path": path_from_project(data, file),
            **({"defect_free": path_from_project(defect_free, file)} if defect_free is not None else {}),
        },
    }
    resolve(
        project={**values, "preset": preset}
    )  # a name that no project file can hold is told before anything is written
    write_text(file, project_template(values, preset=preset))
    for option, path in (("--data", data), ("--defect-free", defect_free)):
        if path is not None and not path.expanduser().exists():
            say(
                f"remark: {option} {path}: no such file or folder yet; `run` looks for it at "
                f"{path_from_project(path, file)}, seen from {file}"
            )
    say(f"{file} written; `defectory run {file}` does every stage")


def _require_project_file(file: Path) -> None:
    """Refuse to replace, even with --force, what is no project file: a mistyped name must not cost a photo or a
    table.
    """
    from defectory.config.resolve import read_project_file
    from defectory.errors import ConfigError

    if file.is_symlink():
        raise ConfigError(file, "is a link", "name the file itself")
    try:
        content = read_project_file(file)
    except ConfigError:
        content = {}
    if not isinstance(content.get("data"), dict):
        raise ConfigError(file, "is there already and is no project file", "give another name")


def run(
    project: Annotated[Path, typer.Argument(help="Project file.")] = Path("project.toml"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Run this stage alone (repeatable); what it needs must be there.")
    ] = None,
    override: OverrideOption = None,
    preset: PresetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do every stage of a project; a stage whose inputs are unchanged is not run again."""
    run_stages(project, only, override, preset, seed, device, dry_run, as_json)


def synthesize(
    config: ConfigOption = Path("project.toml"),
    focus: Annotated[
        str | None,
        typer.Option(
            "--focus", help="uniform, or segmenter: more of what a segmenter misses on train images it has not seen."
        ),
    ] = None,
    override: OverrideOption = None,
    preset: PresetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the stage of synthesis, with a focus of one's choice."""
    wanted = [*(override or []), *([f'synthesis.focus="{focus}"'] if focus is not None else [])]
    run_stages(config, ["synthesize"], wanted, preset, seed, device, dry_run, as_json, with_needs=True)


def insert(
    frame: Annotated[
        Path, typer.Argument(help="Defect-free image of any size; grey of 8 or 16 bit, RGB and RGBA keep their depth.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: images/, annotations.json and sheet.jpg.")],
    config: ConfigOption = Path("project.toml"),
    count: Annotated[int, typer.Option("--count", min=1, help="How many images, each with one defect.")] = 1,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of the defects; as often as in train, if not given.")
    ] = None,
    region: Annotated[
        Path | None, typer.Option("--region", help="PNG of the image's size, white where defects may lie.")
    ] = None,
    drawing: Annotated[
        Path | None,
        typer.Option("--drawing", help="Drawing of the image, where the project takes geometry from drawings."),
    ] = None,
    override: OverrideOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of places, masks and noise.")] = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw defects of a trained project into an image of your own, which stays as it is around them."""
    from defectory.cli.show import say, show_events
    from defectory.folders import require_replaceable
    from defectory.memory import PeakMemory

    require_replaceable(
        out, kind="insert", sources=[path for path in (frame, config, region, drawing) if path is not None]
    )
    from defectory.pipeline.insert_into import insert_into

    project = open_project(config, overrides=override, device=device, save=False)
    events = insert_into(
        project, frame, out=out, count=count, class_name=class_name, region_file=region, seed=seed, drawing_file=drawing
    )
    with PeakMemory() as peak:
        show_events(events, as_json=as_json)
    if not as_json:
        say(f"at most {peak.gb:.1f} GB of memory")


def _stage_verb(stage: str):  # typer reads the signature
    def verb(
        config: ConfigOption = Path("project.toml"),
        override: OverrideOption = None,
        preset: PresetOption = None,
        seed: SeedOption = None,
        device: DeviceOption = None,
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
    ) -> None:
        run_stages(config, [stage], override, preset, seed, device, dry_run, as_json, with_needs=True)

    return verb


def run_stages(
    file: Path,
    only: list[str] | None,
    override: list[str] | None,
    preset: str | None,
    seed: int | None,
    device: str | None,
    dry_run: bool,
    as_json: bool,
    *,
    with_needs: bool = False,
) -> None:
    from defectory.cli.show import format_seconds, say, say_json, show_events, show_table
    from defectory.memory import PeakMemory

    began = time.monotonic()
    project = open_project(file, overrides=override, preset=preset, seed=seed, device=device, save=not dry_run)
    from defectory.pipeline.run import needed_for, run_project, select, stages_of
    from defectory.pipeline.stage import states_of

    stages = stages_of(project)
    names = (
        None
        if only is None
        else (needed_for(stages, only) if with_needs else [stage.name for stage in select(stages, only)])
    )
    if dry_run:
        states = states_of(project, stages)
        rows = [
            (stage.name, states[stage.name], project.path(stage.folder))
            for stage in stages
            if names is None or stage.name in names
        ]
        if as_json:
            for name, state, folder in rows:
                say_json({"event": "StageState", "stage": name, "state": state, "folder": str(folder)})
        else:
            # folders are shown as they lie in the run folder, which the title names: a long path would leave no room
            # for the rest
            short = [(name, state, folder.relative_to(project.folder)) for name, state, folder in rows]
            show_table(
                f"{project.config.name}: what would be done in {project.folder}", ("stage", "state", "folder"), short
            )
        return
    with PeakMemory() as peak:
        show_events(run_project(project, only=only if not with_needs else names), as_json=as_json)
    if as_json:
        return
    say(f"done in {format_seconds(time.monotonic() - began)}, at most {peak.gb:.1f} GB of memory")
    if only is None or "report" in only:
        say(f"report: {project.path('report.html')}")
