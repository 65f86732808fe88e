"""Facts on image files, remembered until a file changes: size, values and remarks; and the value range of a set."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from defectory.images.convert import colours_of, remarks_on_colours, remarks_on_missing
from defectory.images.decode import Decoded, decode
from defectory.images.header import file_state, read_header
from defectory.images.valuerange import LEAST_COUNTS, Levels, ValueRange, is_meant_for, levels_of, set_range, shown
from defectory.terminal import printable

DARK_LEVEL = 16
"""An image whose values stay below this 8-bit level is named in a remark."""


def image_size_hw(path: Path) -> tuple[int, int]:
    """Return height and width of an image file after EXIF rotation; decode it completely to find damage.

    A file that was decoded before and has not changed since is not decoded again.

    Raises:
        ImageError: as for `load_image`.
    """
    return _facts(path).size_hw


def remarks_of(path: Path) -> tuple[str, ...]:
    """Return remarks on how an image file is read: EXIF rotation, further pages, transparency, other colour spaces.

    A file that was decoded before and has not changed since is not decoded again.

    Raises:
        ImageError: as for `load_image`.
    """
    return _facts(path).remarks


def remembered(path: Path, decoded: Decoded) -> Decoded:
    """Return a decoded image as it is, after the facts on its file are remembered.

    Deep images are left out: their values are only measured when somebody asks for them.
    """
    if not _is_remembered(path) and decoded.values is None:
        _remember(path, decoded)
    return decoded


def measure_value_range(paths: Iterable[Path]) -> tuple[ValueRange | None, tuple[str, ...]]:
    """Return the black and white values of a set of images, and remarks; None if every image has 8 bits.

    Black is 0 and white the largest value of the bit depth that fits all values, 4095 for 12 bits in 16-bit files. If
    the values fill less than a third of that, black and white are approximately the smallest and the largest value. At
    most .01% of an image's pixels are clipped on either side. One image is in memory at a time; 8-bit images are
    opened, not decoded.

    Raises:
        ImageError: as for `load_image`.
    """
    deep: list[tuple[str, Levels]] = []
    num_eight_bit = 0
    for path in paths:
        # files decoded before are known without opening them
        known = _facts(path) if _is_remembered(path) or read_header(path).is_deep else None
        if known is None or known.levels is None:
            num_eight_bit += 1
        else:
            deep.append((path.name, known.levels))
    if not deep:
        return None, ()
    counts = [levels for _, levels in deep if not levels.is_fraction]
    chosen = set_range(
        counts if counts and max(i.high for i in counts) > LEAST_COUNTS else [levels for _, levels in deep]
    )
    return chosen, tuple(_remarks_on_range(chosen, deep, num_eight_bit))


@dataclass(frozen=True, kw_only=True)
class _Facts:
    size_hw: tuple[int, int]
    levels: Levels | None
    """None for 8 bits."""
    remarks: tuple[str, ...]


_MAX_REMEMBERED, _SETTLED_S = 50_000, 0.5
_remembered_facts: dict[tuple[str, int, int, int, int], _Facts] = {}


def _key(path: Path) -> tuple[tuple[str, int, int, int, int], bool]:
    """Return the cache key of a file's facts, and whether it is old enough for a change to show in its times."""
    state = file_state(path)
    settled = time.time() - max(state.st_mtime, state.st_ctime) > _SETTLED_S
    return (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns), settled


def _is_remembered(path: Path) -> bool:
    return _key(path)[0] in _remembered_facts


def _facts(path: Path) -> _Facts:
    known = _remembered_facts.get(_key(path)[0])
    return known if known is not None else _remember(path, decode(path))


def _remember(path: Path, decoded: Decoded) -> _Facts:
    levels, remarks = None, list(decoded.remarks)
    if decoded.values is not None:
        levels = levels_of(colours_of(decoded))
        remarks += remarks_on_missing(levels)
    elif decoded.image is not None:
        remarks += remarks_on_colours(decoded.image)
    facts = _Facts(size_hw=decoded.size_hw, levels=levels, remarks=tuple(remarks))
    key, settled = _key(path)
    if settled:
        if len(_remembered_facts) >= _MAX_REMEMBERED:
            _remembered_facts.pop(next(iter(_remembered_facts)))
        _remembered_facts[key] = facts
    return facts


def _remarks_on_range(chosen: ValueRange, deep: list[tuple[str, Levels]], num_eight_bit: int) -> list[str]:
    """Return remarks on the values of a set's deep images, how they are read, and which images look different."""
    meant = [(name, levels) for name, levels in deep if is_meant_for(chosen, levels)]
    kinds = " and ".join(sorted({levels.words for _, levels in deep}))
    least, most = (
        min((i.minimum for _, i in meant), default=chosen.low),
        max((i.maximum for _, i in meant), default=chosen.high),
    )
    told = [f"{kinds} images hold values {shown(least)} to {shown(most)}; read as {chosen.words}"]
    others = [name for name, levels in deep if not is_meant_for(chosen, levels)]
    if others:
        told.append(
            f"{_named(others)} outside that range and read with {'its own' if len(others) == 1 else 'their own'}"
        )
    dark = [name for name, levels in meant if levels.maximum < chosen.low + DARK_LEVEL * chosen.per_level]
    if dark:
        told.append(f"{_named(dark)} darker than level {DARK_LEVEL} of 255 everywhere")
    if num_eight_bit:
        told.append(
            f"{num_eight_bit} images have 8 bits and are not scaled, {len(deep)} have more; they may differ in "
            "brightness"
        )
    return told


def _named(names: list[str]) -> str:
    first = printable(names[0])
    return f"{first} is" if len(names) == 1 else f"{len(names)} images (first {first}) are"
