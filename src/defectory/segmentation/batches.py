"""Draws each step's batch of a segmenter, following the phases of its arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from defectory.segmentation.arms import Arm, batch_shares
from defectory.segmentation.augment import Sample, to_sample
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import Draws, SegmentationImage, members, repeats_of
from defectory.segmentation.policies import POLICIES

Images = Mapping[str, Sequence[SegmentationImage]]
"""Training images by source: `real`, `synthetic` (accepted drafts), `copy_paste`, `defect_free`, others of an arm."""
Batch = list[Sample]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One image of a batch: its source, and its place in the source's endless sequence."""

    source: str
    position: int


class Batches:
    """The batches of a training, each a pure function of its step.

    Args:
        arm: phases, resampling and augmentation.
        name: of the arm, for messages.
        begins: first step of each phase, and the number of steps at the end.
        images: by source.
        config: batch size, shares, augmentation, size of the input.
        seed: of the order, the crops and the variation.

    Raises:
        ConfigError: a source of the arm has no images, or the policy is unknown.
    """

    def __init__(
        self, arm: Arm, name: str, begins: tuple[int, ...], images: Images, config: SegmentationConfig, seed: int
    ) -> None:
        num_images = {source: len(group) for source, group in images.items()}
        shares = [batch_shares(phase, name=name, settings=config, num_images=num_images) for phase in arm.phases]
        self._images, self._seed, self._input_px = images, seed, config.input_px
        self._policy = POLICIES.get(arm.augmentation or config.augmentation)
        threshold = config.resampling_threshold if arm.resampling else 0.0
        self._draws = {
            source: Draws(repeats_of(group, threshold=threshold), seed=seed)
            for source, group in images.items()
            if group
        }
        seen: dict[str, int] = {}
        self.members: list[list[Member]] = []
        for step in range(begins[-1]):
            phase = next(i for i, end in enumerate(begins[1:]) if step < end)
            batch: list[Member] = []
            for source in members(shares[phase], batch_size=config.batch_size, step=step):
                batch.append(Member(source=source, position=seen.get(source, 0)))
                seen[source] = seen.get(source, 0) + 1
            self.members.append(batch)
        self.exposures = dict(sorted(seen.items()))
        """Number of images of each source that the whole training shows."""

    @property
    def mirrors(self) -> bool:
        """Whether images are mirrored at both axes."""
        return self._policy.flip

    def at(self, step: int) -> tuple[int, Batch]:
        """Return a step and its batch."""
        rng = np.random.default_rng([71, self._seed, step])
        return step, [
            to_sample(self._chosen(member), rng, policy=self._policy, input_px=self._input_px)
            for member in self.members[step]
        ]

    def _chosen(self, member: Member) -> SegmentationImage:
        return self._images[member.source][self._draws[member.source].at(member.position)]
