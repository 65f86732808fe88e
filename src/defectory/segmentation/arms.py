"""Defines training arms as data. Imports no torch, so that the configuration can check names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defectory.errors import ConfigError
from defectory.registry import Registry

REST = "rest"
"""The share that the other sources leave."""
DEFECT_FREE = "defect_free"
"""Source that takes part in every arm, with a share of the batch of its own."""
WHAT_TO_DO = {
    "synthetic": "check curation's acceptance",
    "copy_paste": "check that the plan holds masks of train",
    "procedural": "check that train holds defects clear of the image border",
}
"""Advice if a source of an arm has no images."""

Share = float | str
"""A number from 0 to 1, `REST`, or the name of a setting in section `segmentation`."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training.

    Attributes:
        sources: share of the *defective* images of every batch by source: `real`, `synthetic`, `copy_paste` or
            `procedural`. Together with them, every batch holds `segmentation.defect_free_share` of defect-free images,
            if there are any.
        steps: share of the steps.
    """

    sources: Mapping[str, Share]
    steps: Share = REST


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train a segmenter; all arms take the same number of optimiser steps.

    Attributes:
        phases: in order. The best weights are taken from the last phase. Otherwise an arm that ends on real images
            could equal one that never sees any.
        restarts: each phase has a learning-rate schedule of its own, from warm-up to decay; else all phases share one.
        resampling: show images of rare classes more often.
        augmentation: name of an augmentation policy; None takes `segmentation.augmentation`.
        summary: what it does, in a few words for people.
    """

    phases: tuple[Phase, ...]
    restarts: bool = False
    resampling: bool = True
    augmentation: str | None = None
    summary: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of all sources of defective images, each once."""
        return tuple(dict.fromkeys(source for phase in self.phases for source in phase.sources))

    def content(self) -> dict[str, object]:
        """Return what the arm does as JSON-compatible values, sources in their order."""
        phases = [
            {"sources": [list(pair) for pair in phase.sources.items()], "steps": phase.steps} for phase in self.phases
        ]
        return {
            "phases": phases,
            "restarts": self.restarts,
            "resampling": self.resampling,
            "augmentation": self.augmentation,
        }


def _only(source: str) -> tuple[Phase, ...]:
    return (Phase(sources={source: REST}),)


def _mixed(real_share: Share) -> tuple[Phase, ...]:
    """Mix real and synthetic images, and end on real ones alone."""
    return (
        Phase(sources={"real": real_share, "synthetic": REST}),
        Phase(sources={"real": REST}, steps="final_real_share"),
    )


PLAIN = Arm(phases=_only("real"), resampling=False, augmentation="flips", summary="real images, mild variation")
RESAMPLED = Arm(phases=_only("real"), augmentation="flips", summary="real images, rare classes more often")
REAL = Arm(phases=_only("real"), summary="real images, rare classes more often, varied")
COPY_PASTE = Arm(
    phases=(Phase(sources={"real": 0.5, "copy_paste": REST}), Phase(sources={"real": REST}, steps="final_real_share")),
    summary="half of the defective images have a real defect pasted in",
)
PROCEDURAL = Arm(
    phases=(Phase(sources={"real": 0.5, "procedural": REST}), Phase(sources={"real": REST}, steps="final_real_share")),
    summary="half of the defective images have a procedural defect rendered in",
)
MIXED = Arm(phases=_mixed("real_share"), summary="real and synthetic images in every batch")
MIXED_50 = Arm(phases=_mixed(0.5), summary="half of the defective images real, half synthetic")
MIXED_75 = Arm(phases=_mixed(0.75), summary="three quarters of the defective images real, the rest synthetic")
MIXED_90 = Arm(phases=_mixed(0.9), summary="nine tenths of the defective images real, the rest synthetic")
HYBRID = Arm(
    phases=(
        Phase(sources={"real": 0.5, "synthetic": 0.25, "copy_paste": 0.125, "procedural": REST}),
        Phase(sources={"real": REST}, steps="final_real_share"),
    ),
    summary="half real, a quarter synthetic, a quarter with real defects pasted or procedural ones rendered in",
)
SYNTHETIC = Arm(phases=_only("synthetic"), summary="synthetic images alone")
SYNTHETIC_THEN_REAL = Arm(
    phases=(Phase(sources={"synthetic": REST}), Phase(sources={"real": REST}, steps="real_share_of_steps")),
    restarts=True,
    summary="first synthetic, then real images (the paper)",
)

ARMS: Registry[Arm] = Registry(
    "arms",
    setting="segmentation.arms",
    builtin={
        "real_plain": "defectory.segmentation.arms:PLAIN",
        "real_resampled": "defectory.segmentation.arms:RESAMPLED",
        "real": "defectory.segmentation.arms:REAL",
        "copy_paste": "defectory.segmentation.arms:COPY_PASTE",
        "procedural": "defectory.segmentation.arms:PROCEDURAL",
        "mixed": "defectory.segmentation.arms:MIXED",
        "mixed_50": "defectory.segmentation.arms:MIXED_50",
        "mixed_75": "defectory.segmentation.arms:MIXED_75",
        "mixed_90": "defectory.segmentation.arms:MIXED_90",
        "hybrid": "defectory.segmentation.arms:HYBRID",
        "synthetic": "defectory.segmentation.arms:SYNTHETIC",
        "synthetic_then_real": "defectory.segmentation.arms:SYNTHETIC_THEN_REAL",
    },
)
"""The ladder, in order of cost. Each rung holds what those before it have shown to help: resampling, variation."""


def without_repeats(names: Sequence[str], *, augmentation: str) -> tuple[str, ...]:
    """Leave out arms that a later one repeats, such as `real_resampled` where all arms have its augmentation.

    Args:
        names: of arms.
        augmentation: `segmentation.augmentation`.
    """
    contents = {name: ARMS.get(name).content() for name in names}
    whole = {name: {**of, "augmentation": of["augmentation"] or augmentation} for name, of in contents.items()}
    return tuple(name for i, name in enumerate(names) if whole[name] not in [whole[other] for other in names[i + 1 :]])


def first_steps(arm: Arm, *, name: str, settings: Any, num_steps: int) -> tuple[int, ...]:
    """Return the first step of each phase, counted from 0, and the number of steps at the end.

    Args:
        arm: its phases.
        name: of the arm, for messages.
        settings: section `segmentation`, which holds the named shares.
        num_steps: of the whole training.

    Raises:
        ConfigError: the shares do not add up to 1.
    """
    shares = _shares({str(i): phase.steps for i, phase in enumerate(arm.phases)}, settings, of=f"arm {name}, its steps")
    begin, result = 0.0, [0]
    for share in shares.values():
        begin += share
        result.append(round(num_steps * begin))
    return tuple(result)


def batch_shares(phase: Phase, *, name: str, settings: Any, num_images: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each source of a batch, in the order of the batch; defect-free images come last.

    Args:
        phase: its sources.
        name: of the arm, for messages.
        settings: section `segmentation`, which holds the named shares.
        num_images: of each source; without defect-free images the others fill the batch.

    Raises:
        ConfigError: a source has no images, or the shares do not add up to 1.
    """
    shares = _shares(phase.sources, settings, of=f"arm {name}, its batch")
    for source in shares:
        if not num_images.get(source):
            raise ConfigError(f"arm {name}", f"no {source} images", WHAT_TO_DO.get(source, "add annotated images"))
    free = float(settings.defect_free_share) if num_images.get(DEFECT_FREE) else 0.0
    result = {source: share * (1 - free) for source, share in shares.items()}
    return {**result, DEFECT_FREE: free} if free else result


def _shares(shares: Mapping[str, Share], settings: Any, *, of: str) -> dict[str, float]:
    """Return shares as numbers that add up to 1."""
    known: dict[str, float] = {}
    for name, share in shares.items():
        if isinstance(share, str) and share != REST:
            share = getattr(settings, share, None)
        if share != REST:
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                found = f"the share of {name} is {shares[name]!r}"
                raise ConfigError(of, found, "give a number from 0 to 1 or the name of a setting")
            known[name] = float(share)
    num_rest, left = len(shares) - len(known), 1 - sum(known.values())
    if num_rest > 1 or left < -1e-9 or (not num_rest and left > 1e-9):
        found = ", ".join(f"{name} {share}" for name, share in shares.items())
        raise ConfigError(of, f"the shares are {found}", "let them add up to 1")
    return {name: known.get(name, max(0.0, left)) for name in shares}
