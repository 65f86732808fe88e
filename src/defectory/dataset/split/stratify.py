"""Iterative stratification of groups (Sechidis, Tsoumakas and Vlahavas, 2011), so that small subsets have every class.

The rarest label is shared out first: each of its groups goes to the subset that still lacks most of that label. Two
things are added for groups of unlike size: large groups are placed first, so that small ones even out the rest, and
a label with few groups goes to the subsets that must have it before any subset gets a second group of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LARGE = 0.5
"""A group with more than this share of a label is placed before all others, where the most is wanted: in train."""
TIE = 1e-9

Amounts = Mapping[int, float]
"""What a group has of each label."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A subset to fill: its share of every label, and how bad it is if a label is missing there."""

    share: float
    need: float = 1.0


def stratify(
    groups: Sequence[Amounts],
    subsets: Sequence[Subset],
    *,
    sizes: Sequence[int],
    importance: Mapping[int, float],
    seed: Sequence[int],
) -> list[int]:
    """Share out groups so that every subset has its share of every label, and no label is missing without need.

    Args:
        groups: what each group has of each label, above 0.
        subsets: their shares, which add up to 1.
        sizes: number of images of each group; larger groups are placed first, those of like size in random order.
        importance: how bad it is if a label is missing from a subset, times `Subset.need`; 0 for labels not listed.
        seed: of the order of groups of like size, and of ties.

    Returns:
        The index of the subset of each group.
    """
    state = _State(groups, subsets, importance)
    rng = np.random.default_rng(seed)
    rank = rng.permutation(len(groups)).tolist()
    large = {g for g, amounts in enumerate(state.amounts) if max(amounts.values(), default=0) > LARGE}
    for group in sorted(large, key=lambda g: rank[g]):
        label = max(state.amounts[group], key=lambda of: (state.amounts[group][of] > LARGE, -len(state.members[of])))
        state.put(group, state.wanting(label, group, rng))
    while label := state.rarest():
        is_open = [g for g in state.members[label] if state.subset_of[g] is None]
        for group in sorted(is_open, key=lambda g: (-sizes[g].bit_length(), rank[g])):
            state.put(group, state.wanting(label, group, rng))
    state.mend()
    return [0 if subset is None else subset for subset in state.subset_of]


class _State:
    """Which group is where, and what each subset still wants of each label, as a share of all there is of it."""

    def __init__(self, groups: Sequence[Amounts], subsets: Sequence[Subset], importance: Mapping[int, float]) -> None:
        totals: dict[int, float] = {}
        for amounts in groups:
            for label, amount in amounts.items():
                totals[label] = totals.get(label, 0.0) + amount
        self.amounts = [{label: amount / totals[label] for label, amount in of.items()} for of in groups]
        self.members = {label: [g for g, of in enumerate(groups) if label in of] for label in sorted(totals)}
        self.subsets, self.importance = subsets, importance
        self.subset_of: list[int | None] = [None] * len(groups)
        self.wanted = {label: [subset.share for subset in subsets] for label in totals}
        self.counts = {label: [0] * len(subsets) for label in totals}
        self.num_open = {label: len(members) for label, members in self.members.items()}

    def rarest(self) -> int | None:
        """Return the label with the fewest groups left to place; None if all are placed."""
        left = [label for label, count in self.num_open.items() if count]
        return min(left, key=lambda label: (self.num_open[label], len(self.members[label]), label), default=None)

    def wanting(self, label: int, group: int, rng: np.random.Generator) -> int:
        """Return the subset that a group of a label goes to."""
        missing = [s for s, count in enumerate(self.counts[label]) if not count]
        num_open = self.num_open[label]
        choices = list(range(len(self.subsets)))
        if num_open <= len(missing):
            choices = sorted(missing, key=lambda s: -self.subsets[s].need)[:num_open]
        for of in (label, *sorted(set(self.amounts[group]) - {label}, key=lambda of: (len(self.members[of]), of))):
            most = max(self.wanted[of][s] for s in choices)
            choices = [s for s in choices if self.wanted[of][s] > most - TIE]
        return choices[0] if len(choices) == 1 else int(rng.choice(choices))

    def put(self, group: int, subset: int) -> None:
        """Place a group, or move it."""
        before = self.subset_of[group]
        self.subset_of[group] = subset
        for label, amount in self.amounts[group].items():
            self.wanted[label][subset] -= amount
            self.counts[label][subset] += 1
            if before is None:
                self.num_open[label] -= 1
            else:
                self.wanted[label][before] += amount
                self.counts[label][before] -= 1

    def mend(self) -> None:
        """Move single groups as long as less is missing afterwards."""
        while True:
            moves = [
                (gain, -max(self.amounts[g].values()), -g, s)
                for label, counts in self.counts.items()
                if self.importance.get(label)
                for s, count in enumerate(counts)
                if not count
                for g in self.members[label]
                if (gain := self._gain(g, s)) > TIE
            ]
            if not moves:
                return
            _, _, place, subset = max(moves)
            self.put(-place, subset)

    def _gain(self, group: int, subset: int) -> float:
        """Return how much less is missing after a move."""
        before = self.subset_of[group]
        assert before is not None
        gain = 0.0
        for label in self.amounts[group]:
            counts, weight = self.counts[label], self.importance.get(label, 0.0)
            gain += weight * self.subsets[subset].need * (counts[subset] == 0)
            gain -= weight * self.subsets[before].need * (counts[before] == 1)
        return gain
