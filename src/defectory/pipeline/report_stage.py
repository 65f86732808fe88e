"""The report stage: gathers what the stages left and hands it to the report room as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory import __version__
from defectory.artifacts.plan import Decision, Decisions, Job, Plan
from defectory.artifacts.tiles import Tile
from defectory.config.resolve import flatten
from defectory.curation.decide import FidelitySummary
from defectory.curation.fidelity import drawn_map, iou
from defectory.curation.tighten import tighten
from defectory.drawing import draw_outlines
from defectory.drivers.leakage import Leakage
from defectory.drivers.palette import palette
from defectory.files import MANIFEST_NAME, read_manifest, write_json
from defectory.imageio import load_rgb
from defectory.pipeline.curate_stage import decisions_of, fidelity_of
from defectory.pipeline.driver_check import leakage_of
from defectory.pipeline.generate_stages import calibration_of, plan_of
from defectory.pipeline.judge_stages import arm_folder, read_scores
from defectory.pipeline.signatures import Memorisation, memorisation, signatures
from defectory.pipeline.stage import Progress, Project
from defectory.pipeline.values import dataset_of, masks_of, split_of, spread, tileset_of
from defectory.report.charts import smooth
from defectory.report.content import Cell, Chart, Curve, Grid, Outcome, ReportContent, Table
from defectory.report.page import write_report

NUM_CELLS = 8
TIGHT_COLOUR = (80, 160, 255)
OUTLINE_COLOURS = {"accepted": (40, 220, 60), "rejected": (255, 60, 60)}
ARM_NAMES = {"real": "real", "synthetic": "synthetic", "synthetic_then_real": "synthetic then real"}
SCORE_COLUMNS = (
    ("segm_map", "segm mAP"),
    ("bbox_map", "bbox mAP"),
    ("ap50", "AP50"),
    ("iou", "IoU, missed count 0"),
    ("iou_matched", "IoU, matched"),
    ("hausdorff", "Hausdorff"),
)


def report_settings(project: Project) -> object:
    """Give the settings the report depends on: it shows them all."""
    return project.config.model_dump(mode="json", exclude={"out", "threads"})


def run_report(project: Project) -> Iterator[Progress | str]:
    """Write `report.html`."""
    scores, plan, decisions = read_scores(project), plan_of(project), decisions_of(project)
    leak, copied = leakage_of(project), memorisation(project, plan)
    content = ReportContent(
        title=f"{project.config.name}: does synthetic data help?",
        outcome=Outcome(outcome=scores["verdict"]["outcome"], sentence=scores["verdict"]["sentence"]),
        facts=_facts(project),
        scores=_score_tables(scores),
        grids=[_main_grid(project, plan, decisions), _decision_grid(project, plan, decisions)],
        signatures=signatures(scores, leak, copied, drivers=project.config.drivers),
        measures=_measures(project, scores, leak, copied),
        charts=_charts(project),
        appendix=_appendix(project, decisions),
    )
    # the run folder gets a copy of this one
    write_report(content, project.path("report", "report.html"))
    write_json(
        project.path("report", "summary.json"),
        {
            "leakage_auc": None if leak is None else {"auc": leak.auc, "interval": leak.interval},
            "memorisation": None
            if copied is None
            else {"draft_to_train": copied.draft_to_train, "train_to_train": copied.train_to_train},
            "signatures": {s.name: s.detected for s in content.signatures},
        },
    )
    found = [s.name for s in content.signatures if s.detected]
    yield f"report.html; failures found: {', '.join(found) or 'none'}"


def _facts(project: Project) -> list[tuple[str, str]]:
    split, tiling, categories = split_of(project), tileset_of(project).tiling, dataset_of(project).categories
    seeds = len(project.config.segmentation.seeds)
    return [
        ("train", f"{len(split.train)} images"),
        ("val", f"{len(split.val)}"),
        ("test", f"{len(split.test)}"),
        ("defect-free pool", f"{len(split.pool)}"),
        ("classes", ", ".join(c.name for c in categories)),
        ("mode", f"{tiling.mode}, {tiling.tile_px} px, scale {tiling.scale:.2f}"),
        ("base", project.config.base if project.config.base == "embedded" else Path(project.config.base).name),
        ("seeds per arm", str(seeds)),
    ]


def _score_tables(scores: dict[str, Any]) -> list[Table]:
    rows: list[list[str]] = []
    for arm, values in scores["arms"].items():
        rows.append([_arm_name(arm), *(f"{values[key]:.3f}" for key, _ in SCORE_COLUMNS)])
        if len(values["per_seed"]) > 1:
            rows.append(
                [
                    "  lowest to highest",
                    *(
                        f"{min(s[key] for s in values['per_seed']):.3f} - {max(s[key] for s in values['per_seed']):.3f}"
                        for key, _ in SCORE_COLUMNS
                    ),
                ]
            )
    note = (
        "Real test images, read once. All arms: the same number of steps, tiles and defect-free images; checkpoint "
        "chosen on real validation images. "
        "IoU and Hausdorff distance count detections from a score on: the one with the best F1 on validation, unless "
        "the project fixes it. "
        "Hausdorff distance is a share of the image diagonal, 1 for a missed defect; lower is better."
    )
    tables = [
        Table(title="Segmenter, by arm", columns=["arm", *(name for _, name in SCORE_COLUMNS)], rows=rows, note=note)
    ]
    classes = sorted(
        {
            name
            for values in scores["arms"].values()
            for seed in values["per_seed"]
            for name in seed["per_class_segm_map"]
        }
    )
    per_class = [
        [
            _arm_name(arm),
            *(
                f"{np.mean([s['per_class_segm_map'].get(name, 0.0) for s in values['per_seed']]):.3f}"
                for name in classes
            ),
        ]
        for arm, values in scores["arms"].items()
    ]
    tables.append(Table(title="segm mAP per class", columns=["arm", *classes], rows=per_class))
    return tables


def _arm_name(arm: str) -> str:
    return ARM_NAMES.get(arm, arm)


def _colour(row: NDArray[np.uint8]) -> tuple[int, int, int]:
    return int(row[0]), int(row[1]), int(row[2])


def _main_grid(project: Project, plan: Plan, decisions: Decisions) -> Grid:
    tileset = tileset_of(project)
    colours = palette(len(tileset.categories))
    names = {c.id: c.name for c in tileset.categories}

    def outlined(image: NDArray[np.uint8], instances: Any) -> NDArray[np.uint8]:
        return draw_outlines(image, [(_colour(colours[number - 1]), mask) for number, mask in masks_of(instances)])

    def real(tile: Tile) -> Cell:
        image = load_rgb(project.path("tiles", tile.file_name))
        return Cell(
            image=outlined(image, tile.instances),
            caption=", ".join(dict.fromkeys(names[i.category_id] for i in tile.instances)),
        )

    accepted = {d.job_id for d in decisions.decisions if d.status == "accepted"}
    jobs = spread([job for job in plan.jobs if job.id in accepted] or plan.jobs, NUM_CELLS)

    def draft(folder: str, job: Job, outline: bool) -> Cell:
        image = load_rgb(project.path("drafts", folder, f"{job.id}.png"))
        return Cell(image=outlined(image, job.instances) if outline else image, caption=f"#{job.id}")

    rows = [
        (
            "real, labels outlined",
            [real(tile) for tile in spread([t for t in tileset.of("train") if t.instances], NUM_CELLS)],
        ),
        ("driver", [draft("drivers", job, False) for job in jobs]),
        ("synthetic", [draft("images", job, False) for job in jobs]),
        ("synthetic, labels outlined", [draft("images", job, True) for job in jobs]),
        ("same noise, no mask", [draft("without", job, False) for job in jobs]),
    ]
    legend = ", ".join(c.name for c in tileset.categories)
    return Grid(
        title="Real, driver, synthetic",
        rows=rows,
        note=f"Classes in the order of their colours: {legend}. Columns from the second row down belong together.",
    )


def _decision_grid(project: Project, plan: Plan, decisions: Decisions) -> Grid:
    rows: list[tuple[str, list[Cell]]] = []
    jobs = {job.id: job for job in plan.jobs}
    for status, colour in OUTLINE_COLOURS.items():
        chosen: list[Decision] = spread([d for d in decisions.decisions if d.status == status], NUM_CELLS)
        cells: list[Cell] = []
        for decision in chosen:
            image = load_rgb(project.path("drafts", "images", f"{decision.job_id}.png"))
            shown = draw_outlines(image, [(colour, mask) for _, mask in masks_of(jobs[decision.job_id].instances)])
            told = decision.reason if decision.status == "rejected" else f"fidelity {decision.fidelity.iou:.2f}"
            cells.append(Cell(image=shown, caption=f"#{decision.job_id}: {told}"))
        rows.append((status, cells))
    accepted = [jobs[d.job_id] for d in decisions.decisions if d.status == "accepted"]
    rows.append(
        (
            "accepted, as drawn: what curation.tighten_labels makes of labels",
            [_tightened_cell(project, job) for job in spread(accepted, NUM_CELLS)],
        )
    )
    return Grid(
        title="Accepted and rejected",
        rows=rows,
        note="Fidelity compares the label with where the pair with and without mask differs.",
    )


def _tightened_cell(project: Project, job: Job) -> Cell:
    image, without = (load_rgb(project.path("drafts", half, f"{job.id}.png")) for half in ("images", "without"))
    masks = [mask for _, mask in masks_of(job.instances)]
    drawn = drawn_map(
        image, without, np.any(masks, axis=0), difference_threshold=project.config.curation.difference_threshold
    )
    tight = tighten(drawn, masks)
    agreement = np.mean([iou(after, before) for after, before in zip(tight, masks, strict=True)])
    return Cell(
        image=draw_outlines(image, [(TIGHT_COLOUR, mask) for mask in tight]),
        caption=f"#{job.id}: IoU with its label {agreement:.2f}",
    )


def _measures(
    project: Project, scores: dict[str, Any], leak: Leakage | None, copied: Memorisation | None
) -> list[Table]:
    fidelity = fidelity_of(project)
    rows = [
        ["all drafts", f"{fidelity.mean:.3f}", f"{fidelity.accepted_share:.0%}"],
        ["labels shuffled", f"{fidelity.shuffled:.3f}", ""],
    ]
    rows += [
        [f"class {name}", f"{value:.3f}", f"{fidelity.accepted_share_per_class[name]:.0%}"]
        for name, value in fidelity.per_class.items()
    ]
    if fidelity.thin_f1_2px is not None:
        rows.append(
            [
                f"instances under 6 px wide ({fidelity.num_thin}), F1 at 2 px tolerance",
                f"{fidelity.thin_f1_2px:.3f}",
                "",
            ]
        )
    tables = [
        Table(
            title=f"Counterfactual fidelity of {fidelity.num_drafts} drafts, before curation",
            columns=["", "mean IoU", "accepted"],
            rows=rows,
        )
    ]
    tables += _curation_tables(fidelity, decisions_of(project))
    sets = scores["image_sets"]
    if sets is not None:
        name = sets["encoder"]
        low, high = sets["kid_interval"]
        tables.append(
            Table(
                title="Images: synthetic against real test, and real train against real test as the floor",
                columns=["measure", "synthetic", "real train"],
                rows=[
                    [f"KID[{name}]", f"{sets['kid']:.4f} ({low:.4f} to {high:.4f})", f"{sets['kid_floor']:.4f}"],
                    [f"FID[{name}]", f"{sets['fid']:.2f}", f"{sets['fid_floor']:.2f}"],
                    [
                        "Wasserstein distance of tile mean, grey levels",
                        f"{sets['mean_wasserstein']:.2f}",
                        f"{sets['mean_wasserstein_floor']:.2f}",
                    ],
                    [
                        "Wasserstein distance of tile standard deviation",
                        f"{sets['std_wasserstein']:.2f}",
                        f"{sets['std_wasserstein_floor']:.2f}",
                    ],
                ],
                note=f"{sets['num_synthetic']} synthetic tiles, {sets['num_real']} real test tiles. Tones count as "
                "right up to twice the floor.",
            )
        )
    if scores["defect_contrast"]:
        guidance = {c.name: c.mask_guidance for c in calibration_of(project).classes}
        tables.append(
            Table(
                title="Contrast of defects to their surroundings, median over instances",
                columns=["class", "drafts", "real train", "ratio", "mask guidance"],
                rows=[
                    [
                        name,
                        f"{c['synthetic']:.2f} ({c['num_synthetic']})",
                        f"{c['real']:.2f} ({c['num_real']})",
                        f"{c['synthetic'] / max(c['real'], 1e-6):.2f}",
                        f"{guidance[name]:.2f}",
                    ]
                    for name, c in scores["defect_contrast"].items()
                ],
                note="Root mean square distance of a defect's grey levels to the mean of a 5 px ring around it, over "
                "that mean; in brackets, instances. All drafts, before curation.",
            )
        )
    others: list[list[str]] = []
    if leak is not None:
        others.append(
            ["driver leakage, AUC (0.5 is none)", f"{leak.auc:.2f} ({leak.interval[0]:.2f} to {leak.interval[1]:.2f})"]
        )
    if copied is not None:
        others.append(["nearest train tile, synthetic: median distance", f"{copied.draft_to_train:.3f}"])
        others.append(["nearest other train tile, real: median distance", f"{copied.train_to_train:.3f}"])
    if others:
        tables.append(Table(title="Leakage and memorisation", columns=["measure", "value"], rows=others))
    return tables


def _curation_tables(fidelity: FidelitySummary, decisions: Decisions) -> list[Table]:
    figures: dict[str, list[tuple[float, float]]] = {}
    for decision in decisions.decisions:
        for check in decision.checks:
            figures.setdefault(check.name, []).append((check.value, check.limit))
    tables: list[Table] = []
    if figures:
        rows = [
            [
                name,
                f"{np.median([v for v, _ in of]):.2f}",
                f"{np.quantile([v for v, _ in of], 0.95):.2f}",
                f"{of[-1][1]:.2f}",
                str(fidelity.failed_checks.get(name, 0)),
            ]
            for name, of in figures.items()
        ]
        note = (
            "Every limit is learned from train tiles and the defect-free pool. Anomaly is that of the half "
            "without a mask; novelty is likeness to the nearest train tile or prior image."
        )
        if fidelity.density is not None and fidelity.coverage is not None:
            note += (
                f" Accepted drafts beside real tiles: density {fidelity.density:.2f}, coverage {fidelity.coverage:.2f}."
            )
        tables.append(
            Table(
                title="Drafts beside real tiles",
                columns=["check", "median", "95% quantile", "limit", "drafts above it"],
                rows=rows,
                note=note,
            )
        )
    rows = [[f"masks from {kind}", f"{share:.0%}"] for kind, share in fidelity.accepted_share_per_source.items()]
    rows.append(
        ["pool tiles of which no draft was accepted", f"{fidelity.num_pool_tiles_without} of {fidelity.num_pool_tiles}"]
    )
    rows += [[f"rejected: {cause}", str(count)] for cause, count in fidelity.rejected_by.items()]
    if fidelity.tightened_iou is not None:
        rows.append(["IoU of labels with labels as drawn", f"{fidelity.tightened_iou:.2f}"])
    if fidelity.likely_cause is not None:
        rows.append(["likely cause of few accepted drafts", fidelity.likely_cause])
    tables.append(Table(title="Accepted and rejected, by origin and cause", columns=["", "value"], rows=rows))
    return tables


def _charts(project: Project) -> list[Chart]:
    charts: list[Chart] = []
    for title, folder in (("Learn the concept", "concept"), ("Learn the condition", "control")):
        lines = [json.loads(line) for line in project.path(folder, "log.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        held_out = [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
        curves = [Curve(name="train, mean of 20", points=smooth(losses, 20))]
        curves += [Curve(name="held out, unweighted", points=held_out)] if held_out else []
        charts.append(Chart(title=title, x_label="step", y_label="loss", curves=curves))
    losses_of: list[Curve] = []
    maps_of: list[Curve] = []
    seed = project.config.segmentation.seeds[0]
    for arm in project.config.segmentation.arms:
        path = project.path(arm_folder(arm, seed), "log.json")
        if path.is_file():
            log = json.loads(path.read_text())
            losses_of.append(Curve(name=ARM_NAMES[arm], points=smooth(log["losses"], 20)))
            maps_of.append(Curve(name=ARM_NAMES[arm], points=[(step, value) for step, value in log["val_map"]]))
    charts.append(Chart(title=f"Segmenter, seed {seed}", x_label="step", y_label="loss, mean of 20", curves=losses_of))
    charts.append(
        Chart(title=f"Segmenter on real validation, seed {seed}", x_label="step", y_label="segm mAP", curves=maps_of)
    )
    return charts


def _origins(saved: Path) -> dict[str, str]:
    """Return where each setting came from, as it was saved with the run; empty where that was not saved or is
    damaged.
    """
    try:
        return {str(key): str(origin) for key, origin in json.loads(saved.read_bytes())["origins"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _appendix(project: Project, decisions: Decisions) -> list[Table]:
    stages: list[list[str]] = []
    # stages of segmenters lie a folder deeper; an earlier report is no part of this one
    found = [path for depth in ("*", "*/*") for path in project.folder.glob(f"{depth}/{MANIFEST_NAME}")]
    for path in sorted(found, key=lambda p: p.stat().st_mtime_ns):
        name, manifest = path.parent.relative_to(project.folder).as_posix(), read_manifest(path.parent)
        if manifest is not None and name != "report" and not name.startswith(".") and ".damaged" not in name:
            about = manifest["info"]
            stages.append([name, f"{about['seconds']:.0f}", about["output_digest"][:16], about["summary"]])
    reasons: dict[str, int] = {}
    for decision in decisions.decisions:
        key = decision.cause or "accepted"
        reasons[key] = reasons.get(key, 0) + 1
    origins = _origins(project.path("project.json"))
    settings = [
        [
            key,
            json.dumps(value),
            Path(origins.get(key, "")).name if origins.get(key, "").endswith(".toml") else origins.get(key, ""),
        ]
        for key, value in flatten(project.config.model_dump(mode="json")).items()
        if key not in ("base", "out", "data.path")
    ]
    return [
        Table(title="Stages", columns=["stage", "seconds", "digest", "outcome"], rows=stages),
        Table(
            title="Why drafts were kept or rejected",
            columns=["reason", "drafts"],
            rows=[[k, str(v)] for k, v in sorted(reasons.items(), key=lambda i: -i[1])],
        ),
        Table(title=f"Settings, Defectory {__version__}", columns=["setting", "value", "from"], rows=settings),
    ]
