"""The meaning of a set's mask values: several classes, one class, or ignored pixels.

Masks with noise or numbered instances are detected; they are not class masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from defectory.errors import AnnotationError, ImageError
from defectory.formats.class_masks import unpacked
from defectory.formats.colours import ColourTable, Rgb, hex_of
from defectory.formats.mask_survey import FileValues, Survey
from defectory.formats.raw import LoadOptions, Sieve

MAX_VALUES = 24
"""Without a list of names, masks with more values are not class masks."""
DEFAULT_CLASS = "defect"
IGNORE_VALUES = (255, 65535)
MIN_PART_PX = 4
"""Values with a smaller mean component size are scattered, as compression noise is."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read the masks of a set."""

    names: Mapping[int, str]
    """Class of each value; values neither here nor ignored are refused. Unused with a threshold or colours."""
    ignored: frozenset[int] = frozenset()
    threshold: int | None = None
    default: str = DEFAULT_CLASS
    apart: bool = False
    """Whether each value is a separate instance."""
    divisor: int = 1
    """1000 if values are class * 1000 + instance."""
    colours: ColourTable | None = None
    noisy: frozenset[Path] = frozenset()
    """Masks that do not fit the others; they are refused one by one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the classes in the order of their values."""
        if self.colours is not None:
            return self.colours.class_names
        return (self.default,) if self.threshold is not None else tuple(dict.fromkeys(self.names.values()))


def decide(
    survey: Survey,
    *,
    names: Mapping[int, str] | None,
    default: str | None,
    colours: ColourTable | None,
    options: LoadOptions,
    sieve: Sieve,
    where: str,
) -> Reading:
    """Decide what the values of a set mean.

    Args:
        survey: survey of all masks that follow one convention.
        names: class of each value, if a list or a table states it.
        default: class of every value, if the folder or the table states it; None if values are classes.
        colours: table for masks in colour.
        options: `mask_threshold`.
        sieve: receives remarks.
        where: the folder or table, for messages.

    Raises:
        AnnotationError: values come from noise, smoothing or numbered instances, or masks have colours without a table.
    """
    one_class = default or DEFAULT_CLASS
    if options.mask_threshold is not None:
        _refuse_high_threshold(survey, options.mask_threshold, where)
        apart = options.mask_threshold == 1 and _numbers_instances(survey, survey.values())
        if apart:
            sieve.remark("mask values number the objects of an image; each is an instance of its own", where)
        return Reading(names={}, threshold=options.mask_threshold, default=one_class, apart=apart)
    if any(path.suffix.lower() in (".jpg", ".jpeg") for path in survey.files):
        sieve.remark("masks are JPEG files, whose compression moves borders; save masks as PNG", where)
    if colours is not None and _fits(survey, colours):
        return Reading(names={}, colours=colours)
    if any(found.kind == "colour" for found in survey.files.values()) or _palettes_differ(survey):
        return _one_colour(survey, one_class, sieve, where)
    if names is None and colours is not None:
        names = dict(enumerate(colours.class_names, start=1))
    noisy = frozenset(path for path, found in survey.files.items() if names is None and len(found.pixels) > MAX_VALUES)
    if not sieve.skip_bad or 2 * len(noisy) > len(survey.files):
        noisy = frozenset()
    values = survey.values(without=noisy)
    if names is not None and len(names) == len(values) == 1:
        names = {values[0]: next(iter(names.values()))}  # one class, drawn as 255 or any other value
    ignored = frozenset(values) & set(IGNORE_VALUES) - set(names or ())
    if names is not None and set(values) <= {*names, *ignored} and (len(values) > 1 or not ignored):
        _remark_ignored(ignored, sieve, where)
        return Reading(
            names={value: names[value] for value in sorted(names) if value in values}, ignored=ignored, noisy=noisy
        )
    if names is not None:
        unknown = [v for v in values if v not in names and (v not in IGNORE_VALUES or len(values) == 1)]
        if len(unknown) > MAX_VALUES:
            _refuse_noise(survey, values, values, where)
        strange = unknown[0]
        first = next(path for path, found in survey.files.items() if strange in found.pixels)
        raise AnnotationError(
            first, f"value {strange} is not in the list of classes", "add it to the list or correct the mask"
        )
    if len(values) <= 1:
        return Reading(names=dict.fromkeys(values, one_class), default=one_class, noisy=noisy)
    if default is not None:
        return _of_one_class(survey, values, default, noisy, sieve, where)
    return _of_values(survey, values, noisy, sieve, where)


def _refuse_high_threshold(survey: Survey, threshold: int, where: str) -> None:
    """Check that some mask reaches the threshold; otherwise, every image would be taken as defect-free."""
    highest = max((_brightness(found, value) for found in survey.files.values() for value in found.pixels), default=0)
    if 0 < highest < threshold:
        raise AnnotationError(
            where,
            f"no mask value reaches the threshold {threshold}; the highest is {highest}",
            "lower --mask-threshold",
        )


def _of_values(survey: Survey, values: list[int], noisy: frozenset[Path], sieve: Sieve, where: str) -> Reading:
    """Decide what several values mean that may be classes."""
    if _has_thousands(values):
        sieve.remark("16-bit masks are read as class * 1000 + instance", where)
        kinds = sorted({value // 1000 if value >= 1000 else value for value in values})
        return Reading(names={kind: str(kind) for kind in kinds}, divisor=1000, noisy=noisy)
    ignored = _ignored(survey, values)
    kept = [value for value in values if value not in ignored]
    if _numbers_instances(survey, kept):
        raise AnnotationError(
            where,
            f"masks hold {len(kept)} values ({_span(kept)}), and each is one object in its image: they number "
            "instances, not classes",
            "give --mask-threshold 1 (data.mask_threshold) to read them as instances of one class, or save masks of "
            "class indices",
        )
    _refuse_noise(survey, values, kept, where)
    if values[-1] in IGNORE_VALUES and values[-2] <= 64 and not ignored:
        raise AnnotationError(
            where,
            f"some masks hold the value {values[-1]} and others {_span(values[:-1])}, never both: two conventions in "
            "one set",
            "give --mask-threshold 1 (data.mask_threshold) to read all as one class, or save all masks with the same "
            "class indices",
        )
    _remark_ignored(ignored, sieve, where)
    if len(kept) > 1 and _are_prefixes(survey, kept) and _are_whole(survey, kept):
        sieve.remark(
            f"mask values {_span(kept)} are read as {len(kept)} classes; if they number objects, --mask-threshold 1 "
            "reads one class",
            where,
        )
    return Reading(names={value: str(value) for value in kept}, ignored=ignored, noisy=noisy)


def _of_one_class(
    survey: Survey, values: list[int], default: str, noisy: frozenset[Path], sieve: Sieve, where: str
) -> Reading:
    """Decide for a folder or table that states the class of everything drawn."""
    apart = _numbers_instances(survey, values)
    ignored = frozenset[int]() if apart else _ignored(survey, values)
    kept = [value for value in values if value not in ignored]
    if apart:
        sieve.remark("mask values number the objects of an image; each is an instance of its own", where)
    else:
        _refuse_noise(survey, values, kept, where)
        _remark_ignored(ignored, sieve, where)
        if len(kept) > 1:
            sieve.remark(f"mask values {_span(kept)} are all read as {default!r}", where)
    return Reading(names=dict.fromkeys(kept, default), ignored=ignored, default=default, apart=apart, noisy=noisy)


def _one_colour(survey: Survey, one_class: str, sieve: Sieve, where: str) -> Reading:
    """Read masks drawn in one colour on black as one class; refuse several colours."""
    drawn: Counter[Rgb] = Counter()
    for found in survey.files.values():
        for value, count in found.pixels.items():
            drawn[_colour_of(found, value)] += count
    if len(drawn) == 1:
        sieve.remark(f"masks are drawn in one colour, {hex_of(next(iter(drawn)))}, read as {one_class!r}", where)
        values = {value for found in survey.files.values() for value in found.pixels}
        return Reading(names=dict.fromkeys(sorted(values), one_class), default=one_class)
    shown = ", ".join(hex_of(colour) for colour, _ in drawn.most_common(4))
    raise AnnotationError(
        where,
        f"masks hold {len(drawn)} colours ({shown}{', ...' if len(drawn) > 4 else ''}) but no table explains them",
        "give a table of colours and classes with --class-colours (data.class_colours), or put labelmap.txt beside "
        "the masks",
    )


def _refuse_noise(survey: Survey, values: list[int], kept: list[int], where: str) -> None:
    noise = _is_noise(survey, kept, values)
    if len(kept) <= MAX_VALUES and not noise:
        return
    if survey.shapes and not noise:
        raise AnnotationError(
            where,
            f"masks hold {len(values)} values besides 0 ({_span(values)}), and no list names them",
            "put classes.txt beside the masks, or give --mask-threshold 1 (data.mask_threshold) to read all as one "
            "class",
        )
    worst = max(survey.files, key=lambda path: len(survey.files[path].pixels))
    middle = 128 if values[-1] > 128 else values[-1] // 2 + 1
    raise AnnotationError(
        where,
        f"masks hold {len(values)} values besides 0 ({_span(values)}; {worst.name} alone "
        f"{len(survey.files[worst].pixels)}), "
        "as JPEG compression or smoothed edges leave them",
        f"save masks as PNG without smoothing, or give --mask-threshold {middle} (data.mask_threshold) "
        f"to read values from {middle} on as one class",
    )


def _is_noise(survey: Survey, kept: list[int], values: list[int]) -> bool:
    """Return whether values other than the highest are scattered, or lie between others along edges."""
    if kept == values and values[-1] <= min(MAX_VALUES, 2 * len(values) + 8):
        return False  # plain indices
    top = values[-1]
    total: dict[int, list[int]] = {}
    for shapes in survey.shapes.values():
        for shape in shapes:
            sums = total.setdefault(shape.value, [0, 0, 0])
            sums[0] += shape.area_px
            sums[1] += shape.num_parts
            sums[2] += shape.between_px
    below = [sums for value, sums in total.items() if value != top]
    noise = sum(area < MIN_PART_PX * parts or 3 * between > 2 * area for area, parts, between in below)
    return bool(below) and 2 * noise > len(below)


def _ignored(survey: Survey, values: list[int]) -> frozenset[int]:
    """Return 255 (65535) if it occurs beside a few small indices, as VOC's borders do."""
    top = values[-1]
    others = values[:-1]
    if top not in IGNORE_VALUES or not others or others[-1] > 200 or (len(others) > 1 and min(np.diff(others)) > 20):
        return frozenset()
    if len(others) == 1 and others[0] > 64:
        return frozenset()  # two grey levels, 128 and 255 for example
    together = any(top in found.pixels and len(found.pixels) > 1 for found in survey.files.values())
    return frozenset({top}) if together else frozenset()


def _numbers_instances(survey: Survey, values: Sequence[int]) -> bool:
    """Return whether values number the objects of each image.

    Either each image has values 1 to n with its own n, or each value occurs in one image only; each value is one
    object.
    """
    sets = _value_sets(survey, values)
    if len(values) < 4 or (len(sets) < 2 and len(values) < 8) or not _are_whole(survey, values):
        return False
    uses = sum(len(found) for found in sets)
    if len(values) >= 8 and uses <= 1.2 * len(values):
        return True
    lengths = {len(found) for found in sets}
    return max(lengths) >= 4 and (len(lengths) >= 3 or len(values) > MAX_VALUES) and _are_prefixes(survey, values)


def _are_prefixes(survey: Survey, values: Sequence[int]) -> bool:
    sets = _value_sets(survey, values)
    return max(len(found) for found in sets) > 1 and all(found == set(range(1, len(found) + 1)) for found in sets)


def _are_whole(survey: Survey, values: Sequence[int]) -> bool:
    """Return whether nearly every value is one connected object in every sampled mask with several values."""
    wanted = set(values)
    parts = [shape.num_parts for shapes in survey.shapes.values() for shape in shapes if shape.value in wanted]
    return len(parts) > 1 and sum(number == 1 for number in parts) >= 0.9 * len(parts)


def _value_sets(survey: Survey, values: Sequence[int]) -> list[set[int]]:
    wanted = set(values)
    return [found for found in (wanted & set(file.pixels) for file in survey.files.values()) if found]


def _has_thousands(values: list[int]) -> bool:
    large = [value for value in values if value >= 1000]
    remainders = [value % 1000 for value in large]
    small = [value for value in values if value < 1000]
    return (
        bool(large)
        and values[-1] < 65000
        and max(remainders) < 500
        and all(value <= 100 for value in small)
        and len({value // 1000 for value in large}) <= 64
        and len(large) < 5000
    )


def _fits(survey: Survey, table: ColourTable) -> bool:
    """Return whether to read masks through the colour table: if they are in colour, or if all their greys are in it."""
    known = set(table.names) | table.background | table.ignored
    kinds = {found.kind for found in survey.files.values()}
    if "colour" in kinds:
        return True
    return all(_colour_of(found, value) in known for found in survey.files.values() for value in found.pixels)


def _palettes_differ(survey: Survey) -> bool:
    """Return whether a palette index has two colours in the set, so that indices have no meaning."""
    seen: dict[int, Rgb] = {}
    return any(
        seen.setdefault(index, colour) != colour
        for found in survey.files.values()
        for index, colour in found.palette.items()
    )


def _colour_of(found: FileValues, value: int) -> Rgb:
    if found.kind == "colour":
        return unpacked(value)
    if found.kind == "palette":
        return found.palette.get(value, (value, value, value))
    grey = min(value, 255)
    return grey, grey, grey


def _brightness(found: FileValues, value: int) -> int:
    return max(unpacked(value)) if found.kind == "colour" else value


def _remark_ignored(ignored: frozenset[int], sieve: Sieve, where: str) -> None:
    for value in sorted(ignored):
        sieve.remark(f"mask value {value} is read as ignore: its pixels count as no defect", where)


def _span(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 4 else f"{values[0]} to {values[-1]}"


def refuse_noisy(path: Path, reading: Reading, survey: Survey) -> None:
    """Check that a mask fits the others of its set.

    Raises:
        ImageError: it is one of `reading.noisy`.
    """
    if path in reading.noisy:
        raise ImageError(
            path,
            f"{len(survey.files[path].pixels)} values, but other masks have only a few",
            "save the mask as PNG without smoothing",
        )
