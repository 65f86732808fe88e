"""Which labelled images train and val use where their number is given: each number is contained in every larger one."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from defectory.dataset.split.groups import Groups, classes_of

Behind = Callable[[dict[int, int]], int | None]
"""Maps the number of images of each class so far to the class that comes next; None ends."""


def choose_images(groups: Groups, count: int, *, seed: Sequence[int]) -> list[int]:
    """Return the ids of a number of labelled images with class shares like those of all, every class at first.

    Of each class, images of groups with the fewest images so far come first.
    """
    totals = _totals(groups)

    def behind(have: dict[int, int]) -> int | None:
        left = [c for c in totals if have[c] < totals[c]]
        return min(left, key=lambda c: (have[c] / totals[c], totals[c], c)) if left else None

    return _ordered(groups, behind, seed=seed, count=count)


def choose_per_class(groups: Groups, count: int, *, seed: Sequence[int]) -> list[int]:
    """Return the ids of images that show each class at least a number of times, or as often as there are images."""
    totals = _totals(groups)

    def behind(have: dict[int, int]) -> int | None:
        left = [c for c in totals if have[c] < min(count, totals[c])]
        return min(left, key=lambda c: (have[c], totals[c], c)) if left else None

    return _ordered(groups, behind, seed=seed, count=None)


def _totals(groups: Groups) -> dict[int, int]:
    totals: dict[int, int] = {}
    for records in groups.values():
        for record in records:
            for category_id in classes_of(record):
                totals[category_id] = totals.get(category_id, 0) + 1
    return totals


def _ordered(groups: Groups, behind: Behind, *, seed: Sequence[int], count: int | None) -> list[int]:
    rng = np.random.default_rng(seed)
    records = [(name, record) for name in sorted(groups) for record in groups[name]]
    place = rng.permutation(len(records))
    taken = dict.fromkeys(groups, 0)
    queues: dict[int, list[tuple[int, int, int]]] = {}
    for number, (_, record) in enumerate(records):
        for category_id in classes_of(record):
            queues.setdefault(category_id, []).append((0, int(place[number]), number))
    for queue in queues.values():
        heapq.heapify(queue)
    have = dict.fromkeys(queues, 0)
    used = set[int]()
    ids: list[int] = []
    while (count is None or len(ids) < count) and (category_id := behind(have)) is not None:
        turn, order, number = heapq.heappop(queues[category_id])
        name, record = records[number]
        if number in used:
            continue
        if turn < taken[name]:
            # its group has got further images since
            heapq.heappush(queues[category_id], (taken[name], order, number))
            continue
        used.add(number)
        ids.append(record.id)
        taken[name] += 1
        for shown in classes_of(record):
            have[shown] += 1
    return ids
