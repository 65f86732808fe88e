"""Which labelled groups train uses: a fraction or a number of images, each contained in every larger one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from defectory.dataset.config import SplitConfig
from defectory.dataset.split.counted import choose_images, choose_per_class
from defectory.dataset.split.groups import Groups, amounts_of, images_per_class
from defectory.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The ids of the chosen images, and remarks on what was asked for and not reached."""

    image_ids: tuple[int, ...]
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


def choose(groups: Groups, config: SplitConfig, *, seed: Sequence[int]) -> Chosen:
    """Return the labelled images of train that a fraction or number asks for.

    A fraction takes whole groups, so that the number of images may miss it. A number is met exactly, where there are so
    many.

    Args:
        groups: labelled images of train by group.
        config: of the split.
        seed: of the order.

    Raises:
        ConfigError: fewer images are wanted than there are classes.
    """
    total = sum(len(records) for records in groups.values())
    classes = set(images_per_class([record for records in groups.values() for record in records]))
    if config.num_per_class is not None:
        return _per_class(groups, config.num_per_class, seed=seed)
    if config.num_labelled is None:
        return _fraction(groups, config.fraction, len(classes), seed=seed)
    if config.num_labelled < min(len(classes), total):
        raise ConfigError(
            f"split.num_labelled {config.num_labelled}",
            f"fewer images than the {len(classes)} classes of train",
            f"ask for {len(classes)} or more, or leave classes out (data.classes)",
        )
    ids = choose_images(groups, config.num_labelled, seed=seed)
    missed = f"train has {len(ids)} labelled images, not {config.num_labelled}, since there are no more"
    return Chosen(image_ids=tuple(ids), remarks=(missed,) if len(ids) < config.num_labelled else ())


def _fraction(groups: Groups, fraction: float, num_classes: int, *, seed: Sequence[int]) -> Chosen:
    ordered = interleave(groups, seed)
    sizes = [len(groups[name]) for name in ordered]
    wanted, covering = fraction * sum(sizes), _covering(ordered, groups)
    names = ordered[: max(covering, _nearest(sizes, wanted), 1)]
    ids = tuple(record.id for name in names for record in groups[name])
    if sum(sizes[:covering]) <= wanted + 1:
        return Chosen(image_ids=ids)
    found = f"split.fraction {fraction:g} asks for {wanted:.0f} of {sum(sizes)} labelled training images"
    return Chosen(image_ids=ids, remarks=(f"{found}; train has {len(ids)}, since {_each_class(num_classes)}",))


def choose_val(groups: Groups, share: float, config: SplitConfig, *, seed: Sequence[int]) -> tuple[int, ...]:
    """Return the ids of a share of val's labelled images, and at least one of every class.

    They are whole groups where train's are, else single images.
    """
    ordered = interleave(groups, seed)
    if config.num_labelled is None and config.num_per_class is None:
        return tuple(record.id for name in choose_share(ordered, groups, share) for record in groups[name])
    classes = images_per_class([record for records in groups.values() for record in records])
    total = sum(len(records) for records in groups.values())
    return tuple(choose_images(groups, max(len(classes), round(share * total), 1), seed=seed))


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


def _per_class(groups: Groups, wanted: int, *, seed: Sequence[int]) -> Chosen:
    ids = choose_per_class(groups, wanted, seed=seed)
    known = {record.id: record for records in groups.values() for record in records}
    counts = images_per_class([known[image_id] for image_id in ids])
    told = (
        (sum(count < wanted for count in counts.values()), f"train has fewer than {wanted} images, and all are used"),
        (sum(count > wanted for count in counts.values()), f"images of other classes show more than {wanted}"),
    )
    remarks = [f"for {count} of {len(counts)} classes {found}" for count, found in told if count]
    return Chosen(image_ids=tuple(ids), remarks=tuple(remarks))


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
