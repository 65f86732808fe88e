"""Detects failure signatures of a run, each with its figures and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from defectory.artifacts.certificate import Certificate
from defectory.artifacts.primary_metric import METRIC_NAMES
from defectory.artifacts.scores import COLLAPSED_MAP, finds_nothing
from defectory.drivers.config import DriverConfig
from defectory.drivers.leakage import FOLDS, MAX_AUC, Leakage
from defectory.report.content import Signature
from defectory.runs.store import RunStore
from defectory.stages.parts.label_counts import FEW, Counts

POOR_QUALITY = "synthetic quality too poor"
NO_GAIN = "no downstream gain"
SEGMENTER_COLLAPSE = "segmenter collapse"
CONTROL_COLLAPSE = "control collapse"
WRONG_CONTRAST = "defects too weak or too strong"
MEMORISATION = "memorisation"
DRIVER_LEAKAGE = "driver leakage"
FEW_HELD_OUT = "few held-out defects"
UNLIKE_TEST = "train unlike test"
SPLIT_BROKEN = "split broken"
MAX_TILES, MIN_TILES = 200, 4
TONE_RATIO, TONE_EXCESS = 2.0, 5.0
"""Tones are off if they are so many times as far from test tiles as train tiles are, and so many grey levels more."""
KID_EXCESS = 0.1
"""Drafts are off if their KID is surely so far above its floor, and twice its floor. Blurred drafts, and drafts 45 grey
levels too light, have .13 more at least; good ones of the demo and of magnetic tiles .02 at most. Train is unlike test
if the floor itself is surely above it.
"""
LOW_FIDELITY = 0.15
LOW_ACCEPTANCE = 0.25
COPY_RATIO = 0.5
MAX_COPIED_SHARE = 0.05
CONTRAST_RATIOS = (2 / 3, 1.5)
MAX_NAMES = 5
MIN_INSTANCES = 8
"""Contrast is not judged for classes with fewer real or synthetic defects."""


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Median distances to the nearest (other) train tile, in the features of the embedded encoder."""

    draft_to_train: float
    train_to_train: float
    copied_share: float
    """Share of drafts whose distance is below `COPY_RATIO` times the 5% quantile of the train tiles' distances."""


def memorisation(inputs: RunStore) -> Memorisation | None:
    """Measure how near drafts are to train tiles; None with fewer than `MIN_TILES` of either."""
    from defectory.engine.features.encoder import embed_images, load_encoder

    tiles = [t for t in inputs.tiles.tileset.of("train") if t.instances][:MAX_TILES]
    jobs = inputs.plan.jobs[:MAX_TILES]
    if min(len(tiles), len(jobs)) < MIN_TILES:
        return None
    encoder, _ = load_encoder()
    train = embed_images(encoder, [inputs.tiles.image(tile) for tile in tiles])
    drafts = embed_images(encoder, [inputs.drafts.image(job) for job in jobs])
    scale = train.std(axis=0) + 1e-6
    train, drafts = train / scale, drafts / scale
    own = np.linalg.norm(train[:, None] - train[None], axis=2) / np.sqrt(train.shape[1])
    np.fill_diagonal(own, np.inf)
    between = np.linalg.norm(drafts[:, None] - train[None], axis=2) / np.sqrt(train.shape[1])
    limit = COPY_RATIO * float(np.quantile(own.min(axis=1), 0.05))
    nearest = between.min(axis=1)
    return Memorisation(
        draft_to_train=float(np.median(nearest)),
        train_to_train=float(np.median(own.min(axis=1))),
        copied_share=float((nearest < limit).mean()),
    )


def signatures(
    scores: dict[str, Any], leak: Leakage | None, copied: Memorisation | None, *, drivers: DriverConfig, labels: Counts
) -> list[Signature]:
    """Judge every failure signature.

    Args:
        scores: of the stage `evaluate`.
        leak: driver leakage; None if it could not be measured.
        copied: memorisation; None if it could not be measured.
        drivers: settings of the drivers.
        labels: number of labelled instances by subset and class.
    """
    return [
        _poor_quality(scores["fidelity"], scores["image_sets"]),
        _unlike_test(scores["image_sets"]),
        _no_gain(scores["verdict"]),
        _segmenter_collapse(scores["arms"]),
        _control_collapse(scores["fidelity"]),
        _wrong_contrast(scores["defect_contrast"]),
        _copied_tiles(copied),
        _driver_leakage(leak, drivers=drivers),
        _few_held_out(labels),
    ]


def split_signature(certificate: Certificate) -> Signature:
    """Judge the split certificate: whether an image of val or test, or a copy of one, was used where it may not be."""
    broken = certificate.broken
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return Signature(
        name=SPLIT_BROKEN,
        detected=bool(broken),
        figure=f"{broken[0]}{more}" if broken else f"none of {len(certificate.uses)} uses crosses the split",
        evidence="; ".join(broken) or f"{len(certificate.uses)} uses and {certificate.num_images} image files checked",
        advice="Do not trust the scores. `defectory verify` names every finding; then run the project in a new folder."
        if broken
        else "Scores are of images that nothing was trained on.",
    )


def red_flags(signatures: Sequence[Signature]) -> list[Signature]:
    """Return what was detected, and what is unknown and matters; the verdict itself says that a gain is unknown."""
    return [s for s in signatures if s.detected or (s.detected is None and s.name != NO_GAIN)]


def kid_is_far(sets: Mapping[str, Any]) -> bool:
    """Judge whether drafts are surely farther from test tiles than train tiles explain."""
    low, _ = sets["kid_interval"]
    return low > _kid_limit(sets)


def _kid_limit(sets: Mapping[str, Any]) -> float:
    # where train itself is far from test, drafts like train are somewhat farther
    return max(sets["kid_floor"] + KID_EXCESS, 2 * sets["kid_floor"], KID_EXCESS)


def _poor_quality(fidelity: dict[str, Any], sets: dict[str, Any] | None) -> Signature:
    share = fidelity["accepted_share"]
    figures = {f"{share:.0%} of drafts accepted, limit {LOW_ACCEPTANCE:.0%}": share < LOW_ACCEPTANCE}
    evidence = f"{share:.0%} of drafts accepted"
    if sets is not None:
        far = [(sets[f"{key}_wasserstein"], sets[f"{key}_wasserstein_floor"]) for key in ("mean", "std")]
        ratios = [value / max(floor, 1e-6) for value, floor in far]
        excess = max(value - floor for value, floor in far)
        tones = (
            f"tones {max(ratios):.1f} times the floor, limit {TONE_RATIO:.0f}, and {excess:.0f} grey levels above it"
        )
        figures[tones] = any(
            ratio > TONE_RATIO and value - floor > TONE_EXCESS
            for ratio, (value, floor) in zip(ratios, far, strict=True)
        )
        low, _ = sets["kid_interval"]
        kid = f"KID {sets['kid']:.3f}, surely above {low:.3f}, limit {_kid_limit(sets):.3f}"
        figures[kid] = kid_is_far(sets)
        evidence += (
            f"; tones {ratios[0]:.1f} and {ratios[1]:.1f} times the floor (tile mean, standard deviation); "
            f"KID {sets['kid']:.3f} against {sets['kid_floor']:.3f}"
        )
    poor = [figure for figure, is_poor in figures.items() if is_poor]
    return Signature(
        name=POOR_QUALITY,
        detected=bool(poor),
        figure="; ".join(poor or figures),
        evidence=evidence,
        advice="Look at the pictures: are they blurred, or of another tone, or is a kind of surface missing? Try grey "
        "drivers for missing surfaces; else train both phases longer, or start from a larger base.",
    )


def _unlike_test(sets: dict[str, Any] | None) -> Signature:
    detected, evidence = None, ""
    figure = f"fewer than {MIN_TILES} drafts, or tiles with defects in train or test"
    advice = "Label more images, so that it can be told."
    if sets is not None:
        low, high = sets["kid_floor_interval"]
        detected = low > KID_EXCESS
        figure = f"KID of train tiles {sets['kid_floor']:.3f}, surely above {low:.3f}, limit {KID_EXCESS:.3f}"
        evidence = (
            f"KID of train tiles against test tiles {sets['kid_floor']:.3f} ({low:.3f} to {high:.3f}); "
            f"{sets['coverage_train']:.0%} of test tiles have a train tile near them; least like train: "
            f"{', '.join(sets['images_least_like_train'])}"
        )
        advice = (
            "Test shows surfaces that train hardly shows. No arm can learn them, and drafts do not have them. Add "
            "labelled images of such surfaces to train, not the test images themselves."
            if detected
            else "Train shows what test shows, as far as can be told."
        )
    return Signature(name=UNLIKE_TEST, detected=detected, figure=figure, evidence=evidence, advice=advice)


def _no_gain(verdict: dict[str, Any]) -> Signature:
    gain, interval, outcome = verdict.get("gain"), verdict.get("interval"), verdict["outcome"]
    told = "" if gain is None else f"gain in {METRIC_NAMES[verdict['metric']]} {gain:+.3f}"
    if told and interval:
        told += f" ({interval[0]:+.3f} to {interval[1]:+.3f})"
    return Signature(
        name=NO_GAIN,
        detected=None if outcome == "not enough evidence" else outcome != "use it",
        figure=told and f"{told}, needed above 0",
        evidence=told and f"{told}; {outcome}",
        advice="Set at least three seeds to know. Without a gain, more annotated images help more than more "
        "synthetic ones.",
    )


def _segmenter_collapse(arms: dict[str, Any]) -> Signature:
    maps = {arm: own["segm_map"] for arm, own in arms.items()}
    collapsed = [arm for arm, own in arms.items() if finds_nothing(own)]
    lowest = ", ".join(f"{arm} {maps[arm]:.3f}" for arm in collapsed) or f"{min(maps.values(), default=0):.3f}"
    if collapsed:
        advice = (
            f"{', '.join(collapsed)} learnt nothing, so gains over it mean nothing. Raise segmentation.num_steps. "
            'The families efficientnet_lite0, light and unet, with segmentation.init = "segmenter", start from shipped '
            "weights and learn from few images."
        )
    else:
        advice = "Every arm learnt something." if maps else "Train segmenters to know."
    return Signature(
        name=SEGMENTER_COLLAPSE,
        detected=bool(collapsed) if maps else None,
        figure=f"segm mAP of {lowest}, limit {COLLAPSED_MAP}" if maps else "no segmenter was trained",
        evidence="segm mAP " + ", ".join(f"{arm} {value:.3f}" for arm, value in maps.items()) if maps else "",
        advice=advice,
    )


def _control_collapse(fidelity: dict[str, Any]) -> Signature:
    mean, shuffled = fidelity["mean"], fidelity["shuffled"]
    limit = f"limit {LOW_FIDELITY}" if mean < LOW_FIDELITY or mean >= 2 * shuffled else f"limit {2 * shuffled:.2f}"
    return Signature(
        name=CONTROL_COLLAPSE,
        detected=bool(mean < LOW_FIDELITY or mean < 2 * shuffled),
        figure=f"mean fidelity {mean:.2f}, {limit}",
        evidence=f"mean fidelity {mean:.2f}, with labels shuffled {shuffled:.2f}",
        advice="Train phase 2 longer, raise condition.training.defect_weight, or raise condition.defect_free_share.",
    )


def contrast_ratios(defect_contrast: Mapping[str, Any]) -> tuple[dict[str, float], list[str], list[str]]:
    """Return the ratio of synthetic to real contrast by class, the classes drawn too weak, and those too strong."""
    ratios: dict[str, float] = {
        name: c["synthetic"] / max(c["real"], 1e-6)
        for name, c in defect_contrast.items()
        if min(c["num_synthetic"], c["num_real"]) >= MIN_INSTANCES
    }
    weak = [name for name, ratio in ratios.items() if ratio < CONTRAST_RATIOS[0]]
    return ratios, weak, [name for name, ratio in ratios.items() if ratio > CONTRAST_RATIOS[1]]


def _wrong_contrast(defect_contrast: dict[str, Any]) -> Signature:
    ratios, weak, strong = contrast_ratios(defect_contrast)
    advice = "Contrast of drafts follows synthesis.mask_guidance."
    if weak or strong:
        changes = [
            f"{', '.join(names)}: set synthesis.mask_guidance {side} theirs in the table of contrasts"
            for names, side in ((weak, "above"), (strong, "below"))
            if names
        ]
        advice = "; ".join(changes) + "; a number holds for every class"
    wrong = _first_few([f"{name} {ratios[name]:.2f}" for name in weak + strong]) or "every class is near it"
    limits = f"limits {CONTRAST_RATIOS[0]:.2f} and {CONTRAST_RATIOS[1]:.2f}"
    shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    return Signature(
        name=WRONG_CONTRAST,
        detected=bool(weak or strong) if ratios else None,
        figure=f"contrast relative to train tiles: {wrong}, {limits}"
        if ratios
        else f"no class has {MIN_INSTANCES} defects in both drafts and train tiles",
        evidence=f"{shown} times the contrast of train tiles" if ratios else "",
        advice=advice,
    )


def _first_few(names: Sequence[str]) -> str:
    """Join names for the first screen, which has no place for all classes of a large data set."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _copied_tiles(copied: Memorisation | None) -> Signature:
    figure, evidence = f"fewer than {MIN_TILES} drafts or train tiles", ""
    if copied is not None:
        figure = f"{copied.copied_share:.0%} of drafts are near-copies of train tiles, limit {MAX_COPIED_SHARE:.0%}"
        evidence = (
            f"{copied.copied_share:.0%} of drafts much nearer to a train tile than train tiles are to each "
            f"other; median distance {copied.draft_to_train:.2f} against {copied.train_to_train:.2f}"
        )
    return Signature(
        name=MEMORISATION,
        detected=None if copied is None else copied.copied_share > MAX_COPIED_SHARE,
        figure=figure,
        evidence=evidence,
        advice="Shorten phase 1, raise concept.prior_loss_weight, or add training images.",
    )


def _driver_leakage(leak: Leakage | None, *, drivers: DriverConfig) -> Signature:
    figure, evidence = f"fewer than {2 * FOLDS} tiles with defects, or without", ""
    if leak is not None:
        figure = f"AUC {leak.auc:.2f}, limit {MAX_AUC:.2f}"
        evidence = f"AUC {leak.auc:.2f} ({leak.interval[0]:.2f} to {leak.interval[1]:.2f}); 0.5 is none"
    return Signature(
        name=DRIVER_LEAKAGE,
        detected=None if leak is None else leak.auc > MAX_AUC,
        figure=figure,
        evidence=evidence,
        advice=(
            "`defectory drivers tune` finds constants with less leakage (usually a lower drivers.grid_px); "
            "check that labels cover the whole defect."
            if drivers.defect_blind
            else "Set drivers.defect_blind = true, so that the labelled defect is filled before extraction."
        ),
    )


def _few_held_out(labels: Counts) -> Signature:
    counts = {subset: labels[subset] for subset in ("val", "test")}
    few = {subset: [f"{name} {n}" for name, n in of.items() if n < FEW] for subset, of in counts.items()}
    told = "; ".join(f"{subset}: {', '.join(names)}" for subset, names in few.items() if names)
    shown = "; ".join(f"{subset}: {_first_few(names)}" for subset, names in few.items() if names)
    fewest = min((n for of in counts.values() for n in of.values()), default=0)
    return Signature(
        name=FEW_HELD_OUT,
        detected=bool(told),
        figure=f"{shown or fewest}, limit {FEW} of each class",
        evidence=told or f"at least {fewest} of each class in val and in test",
        advice="Scores of these classes are a matter of luck. Label more images of them."
        if told
        else "Every class can be scored.",
    )
