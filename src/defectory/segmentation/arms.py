"""Defines training arms as data. Imports no torch, so that the configuration can check names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from defectory.errors import ConfigError
from defectory.registry import Registry

REST = "rest"
"""The share that the other sources leave."""
AT_RANDOM = frozenset({"defect_free"})
"""Optional sources, drawn with replacement, since they may have more tiles than a training sees. All other sources that
an arm names must have tiles, and each of these tiles comes once per epoch.
"""
WHAT_TO_DO = {"synthetic": "check curation's acceptance"}
"""Advice if a required source has no tiles."""

Share = float | str
"""A number from 0 to 1, `REST`, or the name of a setting in section `segmentation`."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training, with its own learning-rate schedule.

    Attributes:
        sources: share of every batch by source: `real`, `synthetic` or `defect_free`, in the order of the batch. The
            source with share `REST`, else the first one, gets the remainder of rounding.
        steps: share of the steps.
    """

    sources: Mapping[str, Share]
    steps: Share = REST


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train a segmenter; all arms take the same number of optimiser steps.

    Attributes:
        phases: in order. The best weights are taken from the last phase. Otherwise an arm that ends on real tiles could
            equal one that never sees any.
    """

    phases: tuple[Phase, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of all sources, each once."""
        return tuple(dict.fromkeys(source for phase in self.phases for source in phase.sources))

    def content(self) -> list[dict[str, object]]:
        """Return the phases as JSON-compatible values, sources in their order."""
        return [
            {"sources": [list(pair) for pair in phase.sources.items()], "steps": phase.steps} for phase in self.phases
        ]


WITH_DEFECT_FREE: Mapping[str, Share] = {"defect_free": "defect_free_share"}
REAL = Arm(phases=(Phase(sources={"real": REST, **WITH_DEFECT_FREE}),))
SYNTHETIC = Arm(phases=(Phase(sources={"synthetic": REST, **WITH_DEFECT_FREE}),))
SYNTHETIC_THEN_REAL = Arm(
    phases=(
        Phase(sources={"synthetic": REST, **WITH_DEFECT_FREE}),
        Phase(sources={"real": REST, **WITH_DEFECT_FREE}, steps="real_share_of_steps"),
    )
)

ARMS: Registry[Arm] = Registry(
    "arms",
    setting="segmentation.arms",
    builtin={
        "real": "defectory.segmentation.arms:REAL",
        "synthetic": "defectory.segmentation.arms:SYNTHETIC",
        "synthetic_then_real": "defectory.segmentation.arms:SYNTHETIC_THEN_REAL",
    },
)


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


def batch_counts(
    phase: Phase, *, name: str, settings: Any, batch_size: int, num_tiles: Mapping[str, int]
) -> dict[str, int]:
    """Return the number of tiles of each source in a batch, in the order of the batch.

    Args:
        phase: its sources.
        name: of the arm, for messages.
        settings: section `segmentation`, which holds the named shares.
        batch_size: tiles per batch.
        num_tiles: of each source; empty sources in `AT_RANDOM` are left out, and the others fill the batch.

    Raises:
        ConfigError: a required source has no tiles, or the shares do not add up to 1.
    """
    shares = _shares(phase.sources, settings, of=f"arm {name}, its batch")
    for source in shares:
        if not num_tiles.get(source) and source not in AT_RANDOM:
            raise ConfigError(f"arm {name}", f"no {source} tiles", WHAT_TO_DO.get(source, "add annotated images"))
    filler = next((source for source, share in phase.sources.items() if share == REST), next(iter(phase.sources)))
    counts, total = dict.fromkeys(shares, 0), 0.0
    for source, share in shares.items():
        if source != filler and num_tiles.get(source):
            counts[source] = round(batch_size * (total + share)) - round(batch_size * total)
            total += share
    counts[filler] = batch_size - sum(counts.values())
    if not num_tiles.get(filler):
        raise ConfigError(f"arm {name}", f"no {filler} tiles to fill a batch with", "add defect-free images")
    return counts


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
