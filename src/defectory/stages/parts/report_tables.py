"""Builds the report's tables from the results of the stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from defectory import __version__
from defectory.artifacts.certificate import Certificate
from defectory.artifacts.concept_check import ConceptCheck
from defectory.artifacts.doubt import Doubts
from defectory.artifacts.plan import Decisions
from defectory.artifacts.primary_metric import MetricChoice
from defectory.config.project import ProjectConfig
from defectory.config.resolve import flatten
from defectory.curation.decide import FidelitySummary
from defectory.drivers.leakage import Leakage
from defectory.report.content import Table
from defectory.runs import layout
from defectory.runs.store import RunStore
from defectory.stages.parts.signatures import Memorisation

SCORE_COLUMNS = (
    ("segm_map", "segm mAP"),
    ("bbox_map", "bbox mAP"),
    ("ap50", "AP50"),
    ("iou", "IoU, missed count 0"),
    ("iou_matched", "IoU, matched"),
    ("hausdorff", "Hausdorff"),
)
SHAPE_COLUMNS = (
    ("pixel_ap", "pixel AP"),
    ("pixel_f1_max", "best pixel F1"),
    ("dice", "Dice, missed count 0"),
    ("hd95", "HD95"),
    ("boundary_f1_2px", "boundary F1, 2 px"),
    ("cldice", "clDice"),
)


def facts(inputs: RunStore, config: ProjectConfig) -> list[tuple[str, str]]:
    """List what the run was made from, as name and value."""
    split, tiling, categories = inputs.split, inputs.tiles.tileset.tiling, inputs.data.dataset.categories
    seeds = len(config.segmentation.seeds)
    return [
        ("train", f"{len(split.train)} images"),
        ("val", f"{len(split.val)}"),
        ("test", f"{len(split.test)}"),
        ("defect-free pool", f"{len(split.pool)}"),
        ("classes", ", ".join(c.name for c in categories)),
        ("mode", f"{tiling.mode}, {tiling.tile_px} px, scale {tiling.scale:.2f}"),
        ("base", config.base if config.base == "embedded" else Path(config.base).name),
        ("seeds per arm", str(seeds)),
    ]


def score_tables(scores: dict[str, Any]) -> list[Table]:
    """Build the tables of every arm's scores and of the primary metric per class."""
    rows: list[list[str]] = []
    chosen = MetricChoice.model_validate(scores["primary_metric"])
    scores = scores | {"arms": in_order(scores)}
    for arm, values in scores["arms"].items():
        rows.append([arm_name(arm), *(f"{values[key]:.3f}" for key, _ in SCORE_COLUMNS)])
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
        "Real test images, read once. All arms: the same number of steps, and the same share of defect-free images; "
        "checkpoint chosen on real validation images. "
        "IoU and Hausdorff distance count detections from a score on: the one around which F1 on validation is best, "
        "unless the project fixes it. "
        "Hausdorff distance is a share of the image diagonal, 1 for a missed defect; lower is better."
    )
    tables = [
        Table(title="Segmenter, by arm", columns=["arm", *(name for _, name in SCORE_COLUMNS)], rows=rows, note=note),
        _plant_table(scores["arms"]),
        Table(
            title="Pixels and shapes, by arm",
            columns=["arm", *(name for _, name in SHAPE_COLUMNS)],
            rows=[
                [arm_name(arm), *(f"{values[key]:.3f}" for key, _ in SHAPE_COLUMNS)]
                for arm, values in scores["arms"].items()
            ],
            note="Means over seeds. HD95 is a share of the image diagonal, 1 for a missed defect; lower is better. "
            "Boundary F1 and clDice suit thin defects: they forgive a border that is a pixel or two off.",
        ),
    ]
    classes = sorted(
        {name for values in scores["arms"].values() for seed in values["per_seed"] for name in seed["per_class"]}
    )
    per_class = [
        [
            arm_name(arm),
            *(f"{np.mean([s['per_class'][name][chosen.metric] for s in values['per_seed']]):.3f}" for name in classes),
        ]
        for arm, values in scores["arms"].items()
    ]
    tables.append(Table(title=f"{chosen.words} per class", columns=["arm", *classes], rows=per_class))
    return tables


def in_order(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arms in the order of the project, which a JSON file with sorted keys does not keep."""
    arms, named = scores["arms"], [figure["arm"] for figure in scores["verdict"].get("arms", ())]
    return {arm: arms[arm] for arm in dict.fromkeys((*named, *arms)) if arm in arms}


def exposure_table(scores: Mapping[str, Any]) -> Table:
    """Build the table of how often each arm was shown images of each source."""
    arms = in_order(scores)
    sources = list(dict.fromkeys(source for values in arms.values() for source in values.get("exposures", {})))

    def text(of: dict[str, int] | None) -> str:
        return "none" if of is None else f"{of['shown']} times, {of['images']} images"

    return Table(
        title="What each training saw",
        columns=["arm", *(arm_name(source) for source in sources)],
        rows=[
            [arm_name(arm), *(text(values.get("exposures", {}).get(source)) for source in sources)]
            for arm, values in arms.items()
        ],
        note="One training of each arm. How often images of a source are shown matters more than how many there are.",
    )


def _plant_table(arms: dict[str, Any]) -> Table:
    """Build the table of missed defects and false alarms at each segmenter's score threshold."""

    def text(value: float | None, *, share: bool = True) -> str:
        if value is None:
            return "none to count"
        return f"{value:.1%}" if share else f"{value:.1f}"

    rows: list[list[str]] = []
    for arm, values in arms.items():
        plant, of = values["plant"], values["per_seed"]
        rows.append(
            [
                arm_name(arm),
                text(plant["missed_defect_rate"]),
                text(plant["missed_image_rate"]),
                text(plant["false_alarms_per_100_good_images"], share=False),
                ", ".join(f"{seed['score_threshold']:.2f}" for seed in of),
                ", ".join(str(seed["num_predictions_at_threshold"]) for seed in of),
            ]
        )
    counts = next((values["per_seed"][0]["plant"] for values in arms.values()), None)
    note = (
        "An image is alarmed if it has a detection at or above the score threshold, chosen on validation unless the "
        "project fixes it. A defect is missed if no such detection touches it. Means over seeds."
    )
    if counts is not None:
        note += (
            f" {counts['num_defects']} defects on {counts['num_defective_images']} images; "
            f"{counts['num_good_images']} good images."
        )
    columns = ["missed defects", "defective images without alarm", "false alarms per 100 good images"]
    columns += ["score threshold, by seed", "detections from it on, by seed"]
    return Table(title="In the plant, by arm", columns=["arm", *columns], rows=rows, note=note)


def arm_name(arm: str) -> str:
    """Return the readable name of an arm."""
    return arm.replace("_", " ")


def measures(
    inputs: RunStore, scores: dict[str, Any], leak: Leakage | None, copied: Memorisation | None
) -> list[Table]:
    """Build the tables of fidelity, curation, image sets, contrast, leakage and memorisation."""
    tables = [_fidelity_table(inputs.fidelity), *_curation_tables(inputs.fidelity, inputs.decisions)]
    if inputs.doubts is not None:
        tables.append(_doubt_table(inputs.doubts))
    if scores["image_sets"] is not None:
        tables.append(_image_set_table(scores["image_sets"]))
    if scores["defect_contrast"]:
        guidance = {c.name: c.mask_guidance for c in inputs.calibration.classes}
        tables.append(_contrast_table(scores["defect_contrast"], guidance))
    return tables + _copy_tables(leak, copied)


def concept_check_table(check: ConceptCheck) -> Table:
    """Build the table of the concept's images without a driver against training tiles."""
    return Table(
        title=f"The concept alone: {len(check.images)} images without a driver against train tiles",
        columns=["", "value"],
        rows=[
            ["copies of train tiles", f"{len(check.copies)} of {len(check.images)}"],
            ["highest similarity", f"{check.highest:.2f} (limit {check.limit:.2f})"],
        ],
        note="Copies show that phase 1 memorised tiles: raise concept.prior_loss_weight, or train fewer steps.",
    )


def _fidelity_table(fidelity: FidelitySummary) -> Table:
    rows = [
        ["all drafts", f"{fidelity.mean:.3f}", f"{fidelity.accepted_share:.0%}"],
        ["labels shuffled", f"{fidelity.shuffled:.3f}", ""],
    ]
    rows += [
        [f"class {name}", f"{value:.3f}", f"{fidelity.accepted_share_per_class[name]:.0%}"]
        for name, value in fidelity.per_class.items()
    ]
    if fidelity.thin_f1_2px is not None:
        thin = f"instances under 6 px wide ({fidelity.num_thin}), F1 at 2 px tolerance"
        rows.append([thin, f"{fidelity.thin_f1_2px:.3f}", ""])
    return Table(
        title=f"Counterfactual fidelity of {fidelity.num_drafts} drafts, before curation",
        columns=["", "mean IoU", "accepted"],
        rows=rows,
    )


def _doubt_table(doubts: Doubts) -> Table:
    rows = [
        ["ignored pixels", f"{doubts.ignored_share:.2%}"],
        ["doubtful instances", f"{doubts.num_doubtful} of {doubts.num_instances}"],
    ]
    if "segmenter" in doubts.witnesses:
        rows.append(["drafts that no segmenter may judge", f"{doubts.num_unjudged} of {len(doubts.drafts)}"])
    return Table(
        title=f"What training ignores in the accepted drafts (witnesses: {', '.join(doubts.witnesses)})",
        columns=["", "value"],
        rows=rows,
    )


def _image_set_table(sets: dict[str, Any]) -> Table:
    name = sets["encoder"]
    low, high = sets["kid_interval"]
    return Table(
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
            ["density, more is better", f"{sets['density']:.2f}", f"{sets['density_train']:.2f}"],
            ["coverage, more is better", f"{sets['coverage']:.2f}", f"{sets['coverage_train']:.2f}"],
        ],
        note=f"{sets['num_synthetic']} synthetic tiles, {sets['num_real']} real test tiles. Tones count as right up "
        "to twice the floor.",
    )


def _contrast_table(contrasts: dict[str, Any], guidance: dict[str, float]) -> Table:
    return Table(
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
            for name, c in contrasts.items()
        ],
        note="Root mean square distance of a defect's grey levels to the mean of a 5 px ring around it, over "
        "that mean; in brackets, instances. All drafts, before curation.",
    )


def _copy_tables(leak: Leakage | None, copied: Memorisation | None) -> list[Table]:
    """Build the table of leakage and memorisation; return no table if neither was measured."""
    rows: list[list[str]] = []
    if leak is not None:
        low, high = leak.interval
        rows.append(["driver leakage, AUC (0.5 is none)", f"{leak.auc:.2f} ({low:.2f} to {high:.2f})"])
    if copied is not None:
        rows.append(["nearest train tile, synthetic: median distance", f"{copied.draft_to_train:.3f}"])
        rows.append(["nearest other train tile, real: median distance", f"{copied.train_to_train:.3f}"])
    return [Table(title="Leakage and memorisation", columns=["measure", "value"], rows=rows)] if rows else []


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


def certificate_table(certificate: Certificate) -> Table:
    """Build the table of which images each consumer used, and what is broken."""
    found = "".join(f" Broken: {problem}." for problem in certificate.broken)
    return Table(
        title=f"Split certificate: the split {'holds' if certificate.verdict == 'holds' else 'is broken'}",
        columns=["used by", "may use", "images", "result"],
        rows=[
            [
                use.consumer,
                " and ".join(use.may_use),
                str(use.num_images),
                "broken" if use.crossed or use.unread else "holds",
            ]
            for use in certificate.uses
        ],
        note=f"Read from the files of the run. {certificate.num_images} image files are as they were imported, unless "
        f"named below; near-duplicates were searched from a similarity of {certificate.duplicate_threshold:.2f}. Seal "
        f"{certificate.seal}; `defectory verify` checks it again.{found}",
    )


def appendix(inputs: RunStore, config: ProjectConfig) -> list[Table]:
    """Build the tables of all stages, curation reasons, and settings with their origins."""
    stages: list[list[str]] = []
    for name, manifest in inputs.manifests().items():
        # an earlier report is not part of this one
        if name != layout.REPORT:
            about = manifest["info"]
            stages.append([name, f"{about['seconds']:.0f}", about["output_digest"][:16], about["summary"]])
    reasons: dict[str, int] = {}
    for decision in inputs.decisions.decisions:
        key = decision.cause or "accepted"
        reasons[key] = reasons.get(key, 0) + 1
    origins = {key: Path(of).name if of.endswith(".toml") else of for key, of in inputs.origins().items()}
    settings = [
        [key, json.dumps(value), origins.get(key, "")]
        for key, value in flatten(config.model_dump(mode="json")).items()
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
