"""Label Studio's own JSON, complete or minimal.

Polygons and ellipses are in percent of the image, brush strokes in Label Studio's own run lengths.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from defectory.errors import AnnotationError
from defectory.formats.fields import Entry, described, entry_of, list_of, number_of, shortened, size_hw_of, text_of
from defectory.formats.imagefinder import ImageFinder, choose_root, remark_unlisted
from defectory.formats.lookup import is_file, is_folder, settle_unlabelled
from defectory.formats.placed import placed_image
from defectory.formats.polygons import polygons_to_rle
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance, Sieve, checked_size_hw, is_litter
from defectory.formats.registry import Format
from defectory.formats.shapes import ellipse_ring, notice_at, only_unusable, refuse_twice
from defectory.images.header import IMAGE_SUFFIXES
from defectory.rle import Rle, encode
from defectory.textfile import read_json_file, sniff_text

MAX_FILES = 200
KINDS = {
    "polygon": "polygon",
    "ellipse": "ellipse",
    "brush": "brush",
    "bitmask": "bitmask",
    "rectangle": "a box",
    "keypoint": "a point",
}
"""Prefixes of result types; `polygonlabels` includes its label, `polygon` takes it from a result with the same id."""
USABLE = frozenset({"polygon", "ellipse", "brush"})
_TASK_KEYS = ("annotations", "completions", "predictions")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One drawn region."""

    kind: str
    label: str | None
    value: Entry
    stated_hw: tuple[int, int] | None
    where: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: an image and its regions; None if nobody has submitted an annotation."""

    image: str
    results: tuple[Result, ...] | None
    where: str
    place: str


def recognise(path: Path) -> str | None:
    """Recognise Label Studio's JSON, or a folder with it."""
    return "Label Studio JSON" if _files(path) else None


def load(path: Path, options: LoadOptions) -> RawDataset:
    """Load Label Studio's JSON.

    A submitted annotation without regions means that the image is defect-free; a task without an annotation is
    unlabelled.

    Raises:
        AnnotationError: a file, task or region is bad and `skip_bad` is off.
        ImageError: an image is bad and `skip_bad` is off.
    """
    sieve = Sieve(options.skip_bad)
    tasks: list[Task] = []
    files = _files(path) or ([] if is_folder(path) else [path])
    if not files:
        raise AnnotationError(path, "no Label Studio JSON in it", "export the project as JSON")
    for file in files:
        tasks += _tasks(file, sieve)
    only_unusable([r.kind for task in tasks for r in task.results or ()], lambda kind: kind in USABLE, path, "regions")
    base = path if is_folder(path) else path.parent
    root = options.image_root or choose_root(base, [task.image for task in tasks])
    finder = ImageFinder(root, sieve, follow_links=options.follow_links)
    images: list[RawImage] = []
    for task in tasks:
        made = None
        if task.results is None and options.unlabelled != "defect-free":
            # it counts as listed anyway
            with contextlib.suppress(AnnotationError):
                finder.find(task.image, task.where, task.place)
        else:
            made = sieve.attempt(task.place, lambda task=task: _image(task, finder, sieve))
        if made is not None:
            images.append(made)
    if not sieve.rejected:
        remark_unlisted(finder)
    refuse_twice(images, path)
    waiting = [shortened(task.image) for task in tasks if task.results is None]
    settle_unlabelled(
        waiting,
        len(tasks) - len(waiting),
        options,
        sieve,
        where=path,
        what="submitted annotation",
        looked_for="'annotations' of each task",
    )
    names = dict.fromkeys(instance.class_name for image in images for instance in image.instances)
    return RawDataset(
        class_names=tuple(names), images=tuple(images), rejected=tuple(sieve.rejected), remarks=sieve.remarks
    )


def _files(path: Path) -> list[Path]:
    if not is_folder(path):
        return [path] if path.suffix.lower() == ".json" and _is_label_studio(path) else []
    try:
        files = sorted(
            p for p in path.iterdir() if p.suffix.lower() == ".json" and not is_litter(p.name) and is_file(p)
        )
    except OSError:
        return []
    return [file for file in files if _is_label_studio(file)] if len(files) <= MAX_FILES else []


def _is_label_studio(path: Path) -> bool:
    text = sniff_text(path).lstrip()
    if not text.startswith(("[", "{")) or '"images"' in text or '"shapes"' in text:
        return False
    has_tasks = '"data"' in text and any(f'"{key}"' in text for key in _TASK_KEYS)
    return '"original_width"' in text or (text.startswith("[") and has_tasks)


def _tasks(path: Path, sieve: Sieve) -> list[Task]:
    content = read_json_file(path)
    entries: Sequence[Any] = content if isinstance(content, list) else [content]
    if not entries:
        raise AnnotationError(path, "no task in it", "export the project as JSON")
    tasks: list[Task] = []
    for number, value in enumerate(entries, start=1):
        made = sieve.attempt(f"task {number}", lambda value=value, number=number: _task(value, path, number, sieve))
        if made is not None:
            tasks.append(made)
    return tasks


def _task(value: object, path: Path, number: int, sieve: Sieve) -> Task:
    where, place = f"{path}: task {number}", f"{path.name}: task {number}"
    entry = entry_of(value, where, "the task")
    is_whole = any(key in entry for key in _TASK_KEYS) and "data" in entry
    data = entry_of(entry["data"], where, "data") if is_whole else entry
    image = _image_of(data, where)
    results = _submitted(entry, where, place, sieve) if is_whole else _minimal(entry)
    return Task(
        image=image, results=None if results is None else _results(results, where, place), where=where, place=place
    )


def _image_of(data: Entry, where: str) -> str:
    """Return the image path of a task: the text in its data that ends like an image, `image` first."""
    named: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, str):
            plain = unquote(value.rsplit("?d=", 1)[-1].split("?", 1)[0])
            if PurePosixPath(plain.replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES:
                named[key] = plain
    chosen = named.get("image") or (next(iter(named.values())) if len(set(named.values())) == 1 else None)
    if chosen is None:
        found = (
            "no image in its data"
            if not named
            else f"{len(named)} images in its data ({', '.join(map(shortened, named))})"
        )
        raise AnnotationError(where, found, "give each task one image")
    # a web address or storage path: keep what follows the host or bucket
    return re.sub(r"^[A-Za-z][\w+.-]*://[^/]*", "", chosen)


def _submitted(entry: Entry, where: str, place: str, sieve: Sieve) -> list[Any] | None:
    """Return the results of the last annotation that was submitted and not cancelled; None if there is none."""
    listed = list_of(entry, "annotations" if "annotations" in entry else "completions", where)
    kept = [entry_of(value, where, "an annotation") for value in listed]
    kept = [annotation for annotation in kept if annotation.get("was_cancelled") not in (True, 1)]
    if len(kept) > 1:
        sieve.remark("has several annotations; the last one is read", place)
    return list_of(kept[-1], "result", where) if kept else None


def _minimal(entry: Entry) -> list[Any] | None:
    """Return the results of a task in the minimal export: lists of regions by the names of the labelling controls."""
    lists = [value for value in entry.values() if isinstance(value, list)]
    regions = [region for value in lists for region in value if isinstance(region, dict) and "original_width" in region]
    if not regions:
        return [] if "annotation_id" in entry else None
    return [
        {
            **region,
            "value": region,
            "type": next(
                (key for key in region if key.endswith("labels")), "brushlabels" if "rle" in region else "polygon"
            ),
        }
        for region in regions
    ]


def _results(values: Sequence[Any], where: str, place: str) -> tuple[Result, ...]:
    entries = [entry_of(value, where, "a region") for value in values]
    shared: dict[str, str] = {}
    for entry in entries:
        if entry.get("type") == "labels" and isinstance(entry.get("id"), str):
            label = _label(entry_of(entry.get("value"), where, "value"), "labels", where)
            if label is not None:
                shared[str(entry["id"])] = label
    results: list[Result] = []
    for number, entry in enumerate(entries, start=1):
        spot = f"{where}: region {number}"
        kind_text = (text_of(entry, "type", spot) or "").lower()
        kind = next((name for name in KINDS if kind_text.startswith(name)), None)
        if kind is None:
            continue  # choices, ratings, texts and relations describe the image and are not drawn on it
        value = entry_of(entry.get("value"), spot, "value")
        label = _label(value, kind_text, spot)
        if label is None:
            label = shared.get(str(entry.get("id")))
        if number_of(entry, "image_rotation", spot) not in (None, 0):
            raise AnnotationError(
                spot, "the image was rotated while it was annotated", "rotate the file, and annotate without rotation"
            )
        stated_hw = size_hw_of(entry, spot, height="original_height", width="original_width")
        results.append(
            Result(
                kind=kind, label=label, value=value, stated_hw=stated_hw, where=spot, place=f"{place}: region {number}"
            )
        )
    return tuple(results)


def _label(value: Entry, key: str, where: str) -> str | None:
    labels = value.get(key)
    if labels is None:
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise AnnotationError(
            where,
            f"{shortened(key)} is {described(labels)}, but a list of names is expected",
            "export the project again",
        )
    if len(labels) > 1:
        raise AnnotationError(
            where, f"has {len(labels)} labels ({', '.join(map(shortened, labels[:3]))})", "give each region one label"
        )
    return labels[0] if labels else None


def _image(task: Task, finder: ImageFinder, sieve: Sieve) -> RawImage:
    path = finder.find(task.image, task.where, task.place)
    results = task.results or ()
    size_hw = checked_size_hw(path, next((r.stated_hw for r in results if r.stated_hw is not None), None), task.where)
    instances: list[RawInstance] = []
    for result in results:
        made = sieve.attempt(result.place, lambda result=result: _instance(result, size_hw, sieve))
        if made is not None:
            instances.append(made)
    return placed_image(path, finder.root, size_hw=size_hw, instances=instances, is_defect_free=not results)


def _instance(result: Result, size_hw: tuple[int, int], sieve: Sieve) -> RawInstance:
    if result.kind not in USABLE:
        raise AnnotationError(
            result.where,
            f"'{result.kind}' is {KINDS[result.kind]}, not a mask",
            "draw a polygon, an ellipse or with the brush",
        )
    if result.label is None:
        raise AnnotationError(result.where, "has no label", "name its class")
    if result.stated_hw is not None and result.stated_hw != size_hw:
        raise AnnotationError(
            result.where, f"is of another size ({result.stated_hw[0]}x{result.stated_hw[1]})", "annotate at image size"
        )
    if result.kind == "brush":
        return RawInstance(class_name=result.label, rle=_brush(result.value, size_hw, result.where))
    height, width = size_hw
    if result.kind == "ellipse":
        x, y, radius_x, radius_y = (
            _percent(result.value, name, result.where) for name in ("x", "y", "radiusX", "radiusY")
        )
        turn = number_of(result.value, "rotation", result.where) or 0.0
        centre, radii = (x * width / 100, y * height / 100), (radius_x * width / 100, radius_y * height / 100)
        ring: list[Any] = list(ellipse_ring(centre, radii, turn_degrees=turn))
    else:
        ring = []
        for point in list_of(result.value, "points", result.where):
            if not isinstance(point, list) or len(point) != 2:
                raise AnnotationError(
                    result.where, f"a point is {described(point)}, but x and y are expected", "export the project again"
                )
            pair = {"x": point[0], "y": point[1]}
            ring += [_percent(pair, "x", result.where) * width / 100, _percent(pair, "y", result.where) * height / 100]
    rle = polygons_to_rle([ring], size_hw, result.where, notice=notice_at(sieve, result.place))
    return RawInstance(class_name=result.label, rle=rle)


def _percent(value: Mapping[str, Any], name: str, where: str) -> float:
    number = number_of(value, name, where)
    if number is None:
        raise AnnotationError(where, f"has no {name}", "export the project again")
    return number


def _brush(value: Entry, size_hw: tuple[int, int], where: str) -> Rle:
    """Decode brush strokes: RGBA in rle-pack (thi.ng/umbrella), with alpha as the mask."""
    codes = value.get("rle")
    if not isinstance(codes, list) or not all(type(code) is int and 0 <= code < 256 for code in codes):
        raise AnnotationError(
            where, f"rle is {described(codes)}, but a list of bytes is expected", "export the project again"
        )
    try:
        pixels = _unpacked(np.array(codes, np.uint8), size_hw[0] * size_hw[1] * 4)
    except (ValueError, IndexError) as error:
        raise AnnotationError(where, f"malformed brush RLE: {error}", "export the project again") from None
    mask = pixels.reshape(*size_hw, 4)[..., 3] > 127
    if not mask.any():
        raise AnnotationError(where, "mask covers no pixel", "draw it or remove the region")
    return encode(mask)


def _unpacked(codes: np.ndarray, num_values: int) -> np.ndarray:
    """Decode rle-pack.

    The header has the number of values, the bits per value and four sizes of run lengths. Runs of one value and
    stretches of several follow.
    """
    bits = np.unpackbits(codes)
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254)).decode("ascii")
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(text):
            raise ValueError("it ends early")
        at += count
        return int(text[at - count : at], 2)

    stated = read(32)
    if stated != num_values:
        raise ValueError(f"{stated} values, but an image of this size has {num_values}")
    word_bits = read(5) + 1
    if word_bits != 8:
        raise ValueError(f"values of {word_bits} bits, but 8 are expected")
    sizes = [read(4) + 1 for _ in range(4)]
    result = np.zeros(num_values, np.uint8)
    done = 0
    while done < num_values:
        is_run = read(1)
        length = 1 + read(sizes[read(2)])
        if done + length > num_values:
            raise ValueError("it holds more values than it says")
        if is_run:
            result[done : done + length] = read(word_bits)
        else:
            if at + length * word_bits > len(bits):
                raise ValueError("it ends early")
            result[done : done + length] = np.packbits(
                bits[at : at + length * word_bits].reshape(length, word_bits), axis=1
            )[:, 0]
            at += length * word_bits
        done += length
    return result


LABEL_STUDIO = Format(name="label-studio", title="Label Studio JSON", recognise=recognise, load=load)
