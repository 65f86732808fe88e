"""Detects failure signatures of synthesis, each with its evidence and advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from defectory.drivers.config import DriverConfig
from defectory.drivers.leakage import MAX_AUC, Leakage
from defectory.report.content import Signature
from defectory.runs.store import RunStore

MAX_TILES = 200
TONE_RATIO = 2.0
LOW_FIDELITY = 0.15
LOW_ACCEPTANCE = 0.25
COLLAPSED_MAP = 0.005
"""Segm mAP below which a segmenter has learnt nothing."""
COPY_RATIO = 0.5
CONTRAST_RATIOS = (2 / 3, 1.5)
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
    """Measure how near drafts are to train tiles; None with fewer than four of either."""
    from defectory.engine.features.encoder import embed_images, load_encoder

    tiles = [t for t in inputs.tiles.tileset.of("train") if t.instances][:MAX_TILES]
    jobs = inputs.plan.jobs[:MAX_TILES]
    if min(len(tiles), len(jobs)) < 4:
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
    scores: dict[str, Any], leak: Leakage | None, copied: Memorisation | None, *, drivers: DriverConfig
) -> list[Signature]:
    """Judge every failure signature from the evaluation's scores, driver leakage and memorisation."""
    return [
        _poor_quality(scores["fidelity"], scores["image_sets"]),
        _no_gain(scores["verdict"]),
        _segmenter_collapse(scores["arms"]),
        _control_collapse(scores["fidelity"]),
        _wrong_contrast(scores["defect_contrast"]),
        _copied_tiles(copied),
        _driver_leakage(leak, drivers=drivers),
    ]


def _poor_quality(fidelity: dict[str, Any], sets: dict[str, Any] | None) -> Signature:
    poor: bool | None = fidelity["accepted_share"] < LOW_ACCEPTANCE
    evidence = f"{fidelity['accepted_share']:.0%} of drafts accepted"
    if sets is not None:
        ratios = [sets[f"{key}_wasserstein"] / max(sets[f"{key}_wasserstein_floor"], 1e-6) for key in ("mean", "std")]
        poor = poor or max(ratios) > TONE_RATIO
        evidence += (
            f"; tones {ratios[0]:.1f} and {ratios[1]:.1f} times the floor (tile mean, standard deviation); "
            f"KID {sets['kid']:.3f} against {sets['kid_floor']:.3f}"
        )
    return Signature(
        name="synthetic quality too poor",
        detected=poor,
        evidence=evidence,
        advice="Look at the pictures. Train both phases longer, or start from a larger base.",
    )


def _no_gain(verdict: dict[str, Any]) -> Signature:
    gain, outcome = verdict.get("gain"), verdict["outcome"]
    return Signature(
        name="no downstream gain",
        detected=None if outcome == "not enough evidence" else outcome == "do not use it",
        evidence="" if gain is None else f"gain in segm mAP {gain:+.3f}; {outcome}",
        advice="Set at least three seeds to know. Without a gain, more annotated images help more than more "
        "synthetic ones.",
    )


def _segmenter_collapse(arms: dict[str, Any]) -> Signature:
    maps = {arm: own["segm_map"] for arm, own in arms.items()}
    collapsed = [arm for arm, value in maps.items() if value < COLLAPSED_MAP]
    return Signature(
        name="segmenter collapse",
        detected=bool(collapsed) if maps else None,
        evidence="segm mAP " + ", ".join(f"{arm} {value:.3f}" for arm, value in maps.items()) if maps else "",
        advice=(
            f"{', '.join(collapsed)} learnt nothing, so gains over it mean nothing. Raise "
            'segmentation.num_steps; segmentation.model = "light" with '
            'segmentation.init = "segmenter" starts from shipped weights, which few images need.'
            if collapsed
            else "Every arm learnt something."
        ),
    )


def _control_collapse(fidelity: dict[str, Any]) -> Signature:
    mean, shuffled = fidelity["mean"], fidelity["shuffled"]
    return Signature(
        name="control collapse",
        detected=bool(mean < LOW_FIDELITY or mean < 2 * shuffled),
        evidence=f"mean fidelity {mean:.2f}, with labels shuffled {shuffled:.2f}",
        advice="Train phase 2 longer, raise condition.training.defect_weight, or raise condition.defect_free_share.",
    )


def _wrong_contrast(defect_contrast: dict[str, Any]) -> Signature:
    contrasts = {
        name: c["synthetic"] / max(c["real"], 1e-6)
        for name, c in defect_contrast.items()
        if min(c["num_synthetic"], c["num_real"]) >= MIN_INSTANCES
    }
    pale = [name for name, ratio in contrasts.items() if ratio < CONTRAST_RATIOS[0]]
    strong = [name for name, ratio in contrasts.items() if ratio > CONTRAST_RATIOS[1]]
    advice = "Contrast of drafts follows synthesis.mask_guidance."
    if pale or strong:
        changes = [
            f"{', '.join(names)}: set synthesis.mask_guidance {side} theirs in the table of contrasts"
            for names, side in ((pale, "above"), (strong, "below"))
            if names
        ]
        advice = "; ".join(changes) + "; a number holds for every class"
    shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in contrasts.items())
    return Signature(
        name="defects too weak or too strong",
        detected=bool(pale or strong) if contrasts else None,
        evidence=f"{shown} times the contrast of train tiles" if contrasts else "",
        advice=advice,
    )


def _copied_tiles(copied: Memorisation | None) -> Signature:
    evidence = ""
    if copied is not None:
        evidence = (
            f"{copied.copied_share:.0%} of drafts much nearer to a train tile than train tiles are to each "
            f"other; median distance {copied.draft_to_train:.2f} against {copied.train_to_train:.2f}"
        )
    return Signature(
        name="memorisation",
        detected=None if copied is None else copied.copied_share > 0.05,
        evidence=evidence,
        advice="Shorten phase 1, raise concept.prior_loss_weight, or add training images.",
    )


def _driver_leakage(leak: Leakage | None, *, drivers: DriverConfig) -> Signature:
    evidence = ""
    if leak is not None:
        evidence = f"AUC {leak.auc:.2f} ({leak.interval[0]:.2f} to {leak.interval[1]:.2f}); 0.5 is none"
    return Signature(
        name="driver leakage",
        detected=None if leak is None else leak.auc > MAX_AUC,
        evidence=evidence,
        advice=(
            "`defectory drivers tune` finds constants with less leakage (usually a lower drivers.grid_px); "
            "check that labels cover the whole defect."
            if drivers.defect_blind
            else "Set drivers.defect_blind = true, so that the labelled defect is filled before extraction."
        ),
    )
