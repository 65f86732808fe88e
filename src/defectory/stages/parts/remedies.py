"""Says which change of settings may help against each failure, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from defectory.stages.parts.signatures import (
    CONTROL_COLLAPSE,
    DRIVER_LEAKAGE,
    MEMORISATION,
    POOR_QUALITY,
    SEGMENTER_COLLAPSE,
)

Change = Callable[[Any], Any]
"""Returns a new value for a setting's present one; None where the setting goes no further."""
FAR = "drafts far from test tiles"
TOO_WEAK, TOO_STRONG = "defects too weak", "defects too strong"
REJECTED = "rejected: "
"""Begins the failures that few accepted drafts stand for, by the most frequent cause of rejection."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A command that may help against a failure.

    Attributes:
        title: what is done.
        why: the reason in one or two sentences; `{figure}` stands for the failure's figure.
        changes: new values of settings, by dotted key.
        verb: of the command line.
    """

    title: str
    why: str
    changes: Mapping[str, Change] = field(default_factory=dict[str, Change])
    verb: str = "run"

    def settings(self, present: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that change.

        Args:
            present: value of every setting by dotted key.
        """
        found = {key: change(present[key]) for key, change in self.changes.items()}
        return {key: value for key, value in found.items() if value is not None and value != present[key]}

    def applies(self, present: Mapping[str, Any]) -> bool:
        """Check whether the command would do anything new; a verb without changes always does."""
        return not self.changes or bool(self.settings(present))


def times(factor: float, *, at_most: float | None = None, from_zero: float | None = None) -> Change:
    """Multiply a number; integers stay integers of at least 1.

    Args:
        factor: to multiply by.
        at_most: larger results are not used.
        from_zero: result for 0, which no factor changes.
    """

    def change(value: float) -> float | None:
        new = from_zero if value == 0 and from_zero is not None else value * factor
        new = max(1, round(new)) if isinstance(value, int) else round(new, 6)
        return None if at_most is not None and new > at_most else new

    return change


def _plus(step: float) -> Change:
    """Add to a share, while it stays between 0 and 1."""
    return lambda value: round(value + step, 6) if 0 < value + step < 1 else None


def _to(new: object) -> Change:
    return lambda _: new


def _instead_of(old: object, new: object) -> Change:
    return lambda value: new if value == old else None


def _halfway_to_one(value: float) -> float | None:
    """Return a weaker guidance; 1 turns it off."""
    return round((value + 1) / 2, 2) if value > 1.1 else None


def _guidance(factor: float) -> Change:
    """Multiply mask guidance where it is a number; `auto` follows the tone quantile."""
    return lambda value: None if value == "auto" else max(1.0, round(value * factor, 2))


PHASE_1 = {"concept.training.num_steps": times(2)}
PHASE_2 = {"condition.training.num_steps": times(2)}
BOTH_PHASES = {**PHASE_1, **PHASE_2}
DEFECT_FREE = {"condition.defect_free_share": times(2, at_most=0.6, from_zero=0.15)}

LONGER = Remedy(
    title="Train both phases twice as long",
    why="Drafts differ too much from real tiles ({figure}).",
    changes=BOTH_PHASES,
)

REMEDIES: Mapping[str, Sequence[Remedy]] = {
    SEGMENTER_COLLAPSE: (
        Remedy(
            title="Train the segmenters three times as long",
            why="An arm learnt nothing ({figure}), so a gain over it means nothing.",
            changes={"segmentation.num_steps": times(3)},
        ),
    ),
    DRIVER_LEAKAGE: (
        Remedy(
            title="Fill labelled defects before drivers are extracted",
            why="Drivers give away which images had a defect ({figure}). The control network may follow that trace "
            "instead of the mask.",
            changes={"drivers.defect_blind": _to(True)},
        ),
        Remedy(
            title="Look for drivers that leak less",
            why="Drivers give away which images had a defect ({figure}). The command measures other constants; write "
            "the best ones into the project file and run again.",
            verb="drivers tune",
        ),
    ),
    CONTROL_COLLAPSE: (
        Remedy(
            title="Train phase 2 twice as long",
            why="The control network hardly follows the masks ({figure}).",
            changes=PHASE_2,
        ),
    ),
    f"{REJECTED}blank": (
        Remedy(
            title="Train both phases twice as long",
            why="Few drafts can be used, and most rejected ones are blank ({figure}).",
            changes=BOTH_PHASES,
        ),
    ),
    f"{REJECTED}not drawn": (
        Remedy(
            title="Train phase 2 twice as long",
            why="Few drafts can be used: most rejected ones show no defect under their mask ({figure}).",
            changes=PHASE_2,
        ),
    ),
    f"{REJECTED}drawn outside": (
        Remedy(
            title="Show phase 2 more defect-free tiles",
            why="Few drafts can be used: most rejected ones show a defect beside their mask ({figure}).",
            changes=DEFECT_FREE,
        ),
        Remedy(
            title="Train phase 2 twice as long",
            why="Few drafts can be used: most rejected ones show a defect beside their mask ({figure}).",
            changes=PHASE_2,
        ),
    ),
    f"{REJECTED}exposure": (
        Remedy(
            title="Train phase 1 twice as long",
            why="Few drafts can be used: most rejected ones have other tones than real tiles ({figure}).",
            changes=PHASE_1,
        ),
    ),
    f"{REJECTED}blur": (
        Remedy(
            title="Train both phases twice as long",
            why="Few drafts can be used: most rejected ones are blurred ({figure}).",
            changes=BOTH_PHASES,
        ),
    ),
    f"{REJECTED}clipping": (
        Remedy(
            title="Draw with weaker guidance",
            why="Few drafts can be used: most rejected ones have black or white patches ({figure}).",
            changes={"synthesis.driver_guidance": _halfway_to_one, "synthesis.guidance_scale": _halfway_to_one},
        ),
        Remedy(
            title="Train both phases twice as long",
            why="Few drafts can be used: most rejected ones have black or white patches ({figure}).",
            changes=BOTH_PHASES,
        ),
    ),
    f"{REJECTED}anomaly": (
        Remedy(
            title="Show phase 2 more defect-free tiles",
            why="Few drafts can be used: most rejected ones show defects even without a mask ({figure}).",
            changes=DEFECT_FREE,
        ),
        Remedy(
            title="Train phase 2 twice as long",
            why="Few drafts can be used: most rejected ones show defects even without a mask ({figure}).",
            changes=PHASE_2,
        ),
    ),
    f"{REJECTED}realism": (
        Remedy(
            title="Train both phases twice as long",
            why="Few drafts can be used: most rejected ones look like no real tile ({figure}).",
            changes=BOTH_PHASES,
        ),
    ),
    f"{REJECTED}novelty": (
        Remedy(
            title="Raise the weight of the prior images",
            why="Few drafts can be used: most rejected ones copy a train tile ({figure}).",
            changes={"concept.prior_loss_weight": times(2, from_zero=0.3)},
        ),
    ),
    f"{REJECTED}agreement": (
        Remedy(
            title="Train phase 2 twice as long",
            why="Few drafts can be used: segmenters do not find the defects of most rejected ones ({figure}).",
            changes=PHASE_2,
        ),
    ),
    f"{REJECTED}duplicate": (
        Remedy(
            title="Draw on more versions of each pool tile",
            why="Few drafts can be used: most rejected ones equal another draft ({figure}).",
            changes={"synthesis.augmentations_per_image": times(2, from_zero=10)},
        ),
    ),
    POOR_QUALITY: (LONGER,),
    FAR: (
        Remedy(
            title="Show the model its surfaces: drivers in grey",
            why=(
                "Drafts differ too much from real tiles ({figure}). If they lose a surface that some real images show, "
                "grey drivers keep it, and drafts vary less apart from their defects."
            ),
            changes={"drivers.kind": _instead_of("topology", "grey")},
        ),
        LONGER,
    ),
    TOO_WEAK: (
        Remedy(
            title="Draw stronger defects",
            why="Defects of drafts are paler than real ones ({figure}).",
            changes={"synthesis.mask_guidance": _guidance(1.5)},
        ),
        Remedy(
            title="Draw stronger defects",
            why="Defects of drafts are paler than real ones ({figure}).",
            changes={"synthesis.tone_quantile": _plus(0.2)},
        ),
    ),
    TOO_STRONG: (
        Remedy(
            title="Draw weaker defects",
            why="Defects of drafts stand out more than real ones ({figure}).",
            changes={"synthesis.mask_guidance": _guidance(1 / 1.5)},
        ),
        Remedy(
            title="Draw weaker defects",
            why="Defects of drafts stand out more than real ones ({figure}).",
            changes={"synthesis.tone_quantile": _plus(-0.2)},
        ),
    ),
    MEMORISATION: (
        Remedy(
            title="Train phase 1 for half as long, with a higher weight of the prior images",
            why="Drafts repeat train tiles instead of adding to them ({figure}).",
            changes={"concept.training.num_steps": times(0.5), "concept.prior_loss_weight": times(2, from_zero=0.3)},
        ),
    ),
}
"""By failure, the most urgent first; of several remedies the first that applies is suggested."""
