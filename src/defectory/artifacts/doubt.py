"""Doubt: which pixels and instances of accepted drafts a segmenter should not learn from."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.value import Value
from defectory.rle import Rle, area_px

Witness = Literal["difference", "segmenter"]
"""Who doubts: the counterfactual difference, or segmenters trained on real images."""


class DraftDoubt(Value):
    """The doubt about one accepted draft."""

    job_id: str
    ignore: Rle
    """Pixels to ignore, in the coordinates of the tile's image part."""
    is_doubtful: tuple[bool, ...]
    """For each instance of the delivered label, whether its box and mask are doubtful."""
    judges: tuple[int, ...] = ()
    """Folds whose segmenters judged the draft; none if each of them trained on an image of the draft."""


class Doubts(Value):
    """The doubt about all accepted drafts, in plan order."""

    plan_digest: str
    witnesses: tuple[Witness, ...]
    drafts: tuple[DraftDoubt, ...]

    def by_job(self) -> dict[str, DraftDoubt]:
        """Return the doubt by job id."""
        return {draft.job_id: draft for draft in self.drafts}

    @property
    def num_instances(self) -> int:
        """Return the number of instances."""
        return sum(len(draft.is_doubtful) for draft in self.drafts)

    @property
    def num_doubtful(self) -> int:
        """Return the number of doubtful instances."""
        return sum(sum(draft.is_doubtful) for draft in self.drafts)

    @property
    def ignored_share(self) -> float:
        """Return the share of ignored pixels, from 0 to 1."""
        total = sum(draft.ignore.size_hw[0] * draft.ignore.size_hw[1] for draft in self.drafts)
        return sum(area_px(draft.ignore) for draft in self.drafts) / max(1, total)

    @property
    def num_unjudged(self) -> int:
        """Return the number of drafts that no segmenter may judge; 0 if segmenters are no witness."""
        return sum(not draft.judges for draft in self.drafts) if "segmenter" in self.witnesses else 0

    def summary(self) -> str:
        """Describe the doubt in one line."""
        told = (
            f"{self.ignored_share:.1%} of the pixels ignored, {self.num_doubtful} of {self.num_instances} instances "
            "doubtful"
        )
        unjudged = self.num_unjudged
        return told + (f", {unjudged} of {len(self.drafts)} drafts without a judge" if unjudged else "")
