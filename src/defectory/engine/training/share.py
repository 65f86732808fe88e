"""Shares of a training step among processes. Knows no torch and no process, only numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a step that one process computes: some micro-batches, and of each some members.

    All processes together compute every member of every micro-batch once.

    Attributes:
        first: micro-batch of a step that is the first of this process.
        every: distance to its next one.
        first_member: of a micro-batch.
        every_member: distance to the next one; 1 if micro-batches are not divided.
    """

    first: int = 0
    every: int = 1
    first_member: int = 0
    every_member: int = 1

    @property
    def members(self) -> slice:
        """Return which members of a micro-batch this process computes."""
        return slice(self.first_member, None, self.every_member)


WHOLE = Share()
"""Of a process that trains alone."""


def divided(num_micro_batches: int, batch_size: int, num_processes: int) -> tuple[int, int] | None:
    """Return how many processes take micro-batches in turn, and how many share the members of one; None if the shares
    would not be equal.

    Whole micro-batches come first, since they keep a GPU as busy as before.
    """
    in_turn = math.gcd(num_micro_batches, num_processes)
    sharing = num_processes // in_turn
    return None if batch_size % sharing else (in_turn, sharing)


def share_of(rank: int, num_micro_batches: int, batch_size: int, num_processes: int) -> Share:
    """Return the share of a process in each step.

    Args:
        rank: number of the process, from 0.
        num_micro_batches: of a step.
        batch_size: members of a micro-batch.
        num_processes: that train together; they must divide the step equally, see `divided`.
    """
    parts = divided(num_micro_batches, batch_size, num_processes)
    assert parts is not None, "checked before training"
    in_turn, sharing = parts
    first, first_member = divmod(rank, sharing)
    return Share(first=first, every=in_turn, first_member=first_member, every_member=sharing)
