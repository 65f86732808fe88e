"""Which labelled groups train uses: a fraction or a number of images, each contained in every larger one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from defectory.dataset.config import SplitConfig
from defectory.dataset.split.groups import Groups, amounts_of, images_per_class
from defectory.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The chosen groups, and remarks on what was asked for and not reached."""

    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def interleave(groups: Groups, seed: Sequence[int]) -> list[str]:
    """Order groups so that every beginning of the order has the class shares of the whole as closely as possible.

    The first groups show every class. Of each class, groups of more than twice the usual size come last.
    """
    names = sorted(groups)
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    amounts = {name: amounts_of(groups[name]) for name in names}
    labels = sorted({label for of in amounts.values() for label in of}, reverse=True)
    queues: dict[int, deque[str]] = {}
    totals = {label: sum(of.get(label, 0.0) for of in amounts.values()) for label in labels}
    for label in labels:
        members = [name for name in names if label in amounts[name]]
        usual = median(amounts[name][label] for name in members)
        queues[label] = deque(sorted(members, key=lambda name: amounts[name][label] > 2 * usual))
    num_groups = {label: len(queue) for label, queue in queues.items()}
    have = dict.fromkeys(labels, 0.0)
    used: set[str] = set()
    ordered: list[str] = []
    while len(ordered) < len(names):
        for queue in queues.values():
            while queue and queue[0] in used:
                queue.popleft()
        # the class furthest below its share comes next, the rarest first
        behind = min((k for k in labels if queues[k]), key=lambda k: (have[k], k < 0, num_groups[k], k))
        best = queues[behind].popleft()
        used.add(best)
        ordered.append(best)
        for label, amount in amounts[best].items():
            have[label] += amount / totals[label]
    return ordered


def choose(ordered: Sequence[str], groups: Groups, config: SplitConfig) -> Chosen:
    """Return the groups that train uses, in order, and at least one of every class.

    Groups are taken whole, so that the number of images may miss the wanted one.

    Raises:
        ConfigError: fewer images are wanted than there are classes.
    """
    sizes = {name: len(groups[name]) for name in ordered}
    if config.num_per_class is not None:
        return _per_class(ordered, groups, config.num_per_class)
    total = sum(sizes.values())
    wanted = config.fraction * total if config.num_labelled is None else config.num_labelled
    covering = _covering(ordered, groups)
    names = ordered[: max(covering, _nearest([sizes[name] for name in ordered], wanted), 1)]
    used, num_covering = sum(sizes[name] for name in names), sum(sizes[name] for name in ordered[:covering])
    classes = set(images_per_class([record for name in ordered for record in groups[name]]))
    if config.num_labelled is None:
        if num_covering <= wanted + 1:
            return Chosen(names=tuple(names))
        found = f"split.fraction {config.fraction:g} asks for {wanted:.0f} of {total} labelled training images"
        return Chosen(names=tuple(names), remarks=(f"{found}; train has {used}, since {_each_class(len(classes))}",))
    if config.num_labelled < min(len(classes), num_covering):
        raise ConfigError(
            f"split.num_labelled {config.num_labelled}",
            f"fewer images than the {len(classes)} classes of train",
            f"ask for {len(classes)} or more, or leave classes out (data.classes)",
        )
    if used == config.num_labelled:
        return Chosen(names=tuple(names))
    why = "groups are taken whole"
    if used == total:
        why = "there are no more"
    elif num_covering > config.num_labelled:
        why += f" and {_each_class(len(classes))}"
    return Chosen(
        names=tuple(names), remarks=(f"train has {used} labelled images, not {config.num_labelled}, since {why}",)
    )


def choose_share(ordered: Sequence[str], groups: Groups, share: float) -> tuple[str, ...]:
    """Return a share of the groups, by their images, and at least one of every class."""
    sizes = [len(groups[name]) for name in ordered]
    return tuple(ordered[: max(_covering(ordered, groups), _nearest(sizes, share * sum(sizes)), 1)])


def choose_defect_free(groups: Groups, num_images: int, seed: Sequence[int]) -> list[int]:
    """Return the ids of a number of images, from as many groups as possible."""
    rng = np.random.default_rng(seed)
    names = sorted(groups)
    queues = [
        [groups[name][i].id for i in rng.permutation(len(groups[name]))]
        for name in (names[i] for i in rng.permutation(len(names)))
    ]
    turns = ((turn, place) for turn in range(max(map(len, queues), default=0)) for place in range(len(queues)))
    return [queues[place][turn] for turn, place in turns if turn < len(queues[place])][:num_images]


def _per_class(ordered: Sequence[str], groups: Groups, wanted: int) -> Chosen:
    counts = {name: images_per_class(groups[name]) for name in ordered}
    chosen = set[str]()
    num_short, num_more = 0, 0
    for category_id in sorted({label for of in counts.values() for label in of}):
        members = [name for name in ordered if category_id in counts[name]]
        sizes = [counts[name][category_id] for name in members]
        taken = max(1, _nearest(sizes, wanted))
        chosen.update(members[:taken])
        num_short += sum(sizes) < wanted
        num_more += sum(sizes[:taken]) != wanted <= sum(sizes)
    told = (
        (num_short, f"train has fewer than {wanted} images, and all are used"),
        (num_more, f"groups, taken whole, give more or fewer than {wanted} images"),
    )
    num_classes = len({label for of in counts.values() for label in of})
    remarks = [f"for {count} of {num_classes} classes {found}" for count, found in told if count]
    return Chosen(names=tuple(name for name in ordered if name in chosen), remarks=tuple(remarks))


def _covering(ordered: Sequence[str], groups: Groups) -> int:
    """Return how many groups from the beginning of the order show every class."""
    seen, covering = set[int](), 0
    for place, name in enumerate(ordered, start=1):
        classes = set(images_per_class(groups[name]))
        if classes - seen:
            seen |= classes
            covering = place
    return covering


def _nearest(sizes: Sequence[int], wanted: float) -> int:
    """Return how many groups from the beginning of the order come nearest to a number of images."""
    reached = np.cumsum([0, *sizes])
    return int(np.argmin(np.abs(reached - wanted)))


def _each_class(count: int) -> str:
    return f"each of {count} classes needs a group" if count > 1 else "the class needs a group"
