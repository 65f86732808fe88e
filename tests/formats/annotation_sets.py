"""Small annotated sets as annotation tools write them, their true masks, and mutations of them. Images are 40 x 60
pixels, never square.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as pycoco

from defectory.formats.raw import LoadOptions, RawDataset
from defectory.formats.registry import load
from defectory.rle import decode

HEIGHT, WIDTH = SIZE_HW = (40, 60)
RINGS = {"p0": [8.0, 10.0, 30.0, 7.0, 33.0, 16.0, 10.0, 19.0], "p1": [20.0, 20.0, 42.0, 17.0, 45.0, 28.0, 22.0, 30.0]}
CLASS_OF = {"p0": "scratch", "p1": "dent"}
NAMES = ("p0", "p1", "p2")
"""The third one is defect-free."""
Mask = NDArray[np.bool_]
Content = dict[str, Any]


def filled(ring: list[float], size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    """Fill a ring as pycocotools does."""
    return np.asarray(pycoco.decode(pycoco.merge(pycoco.frPyObjects([ring], *size_hw))), bool)


def truth() -> dict[str, Mask]:
    return {name: filled(ring) for name, ring in RINGS.items()}


def picture(number: int, size_hw: tuple[int, int] = SIZE_HW) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(60, 200, (*size_hw, 3), np.uint8)


def write_images(folder: Path, names: tuple[str, ...] = NAMES, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(folder / f"{name}{suffix}")


def write_json(path: Path, value: object, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value).encode(encoding))
    return path


def coco_content(file_name: Callable[[str], str] = lambda name: f"{name}.png") -> Content:
    names = list(CLASS_OF)
    return {
        "images": [
            {"id": n, "file_name": file_name(name), "height": HEIGHT, "width": WIDTH}
            for n, name in enumerate(NAMES, start=1)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n,
                "category_id": n,
                "segmentation": [RINGS[name]],
                "iscrowd": 0,
                "area": 1.0,
                "bbox": [
                    min(RINGS[name][0::2]),
                    min(RINGS[name][1::2]),
                    np.ptp(RINGS[name][0::2]),
                    np.ptp(RINGS[name][1::2]),
                ],
            }
            for n, name in enumerate(names, start=1)
        ],
        "categories": [{"id": n, "name": CLASS_OF[name]} for n, name in enumerate(names, start=1)],
    }


def rle_runs(mask: Mask) -> list[int]:
    flat = np.concatenate([[False], mask.T.reshape(-1), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges[edges < mask.size], [mask.size]])).tolist()


def rle_text(mask: Mask) -> str:
    return pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def write_coco(root: Path, edit: Callable[[Content], object] = lambda content: None) -> Path:
    write_images(root)
    content = coco_content()
    edit(content)
    return write_json(root / "annotations.json", content)


def write_coco_rle(root: Path) -> Path:
    def edit(content: Content) -> None:
        for annotation, (name, mask) in zip(content["annotations"], truth().items(), strict=True):
            annotation["segmentation"] = {
                "size": list(SIZE_HW),
                "counts": rle_text(mask) if name == "p0" else rle_runs(mask),
            }

    return write_coco(root, edit)


def labelme_content(name: str) -> Content:
    ring = RINGS.get(name, [])
    shape = {
        "label": CLASS_OF.get(name),
        "points": np.reshape(ring, (-1, 2)).tolist(),
        "group_id": None,
        "shape_type": "polygon",
        "flags": {},
    }
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": [shape] if ring else [],
        "imagePath": f"{name}.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def write_labelme(root: Path) -> Path:
    write_images(root)
    for name in NAMES:
        write_json(root / f"{name}.json", labelme_content(name))
    return root


def patch_text(patch: Mask) -> str:
    buffer = io.BytesIO()
    Image.fromarray(patch.astype(np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def cvat_xml(shapes: Callable[[str], str]) -> str:
    images = "".join(
        f'<image id="{n}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}">{shapes(name)}</image>'
        for n, name in enumerate(NAMES)
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASS_OF.values())
    return (
        f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>"
    )


def cvat_polygon(name: str) -> str:
    if name not in RINGS:
        return ""
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(RINGS[name], (-1, 2)))
    return f'<polygon label="{CLASS_OF[name]}" source="manual" occluded="0" points="{points}" z_order="0"/>'


def write_cvat(root: Path, shapes: Callable[[str], str] = cvat_polygon) -> Path:
    write_images(root / "images")
    (root / "annotations.xml").write_text(cvat_xml(shapes))
    return root


def label_studio_tasks() -> list[Content]:
    tasks: list[Content] = []
    for number, name in enumerate(NAMES, start=1):
        results = (
            [
                {
                    "id": "r1",
                    "type": "polygonlabels",
                    "original_width": WIDTH,
                    "original_height": HEIGHT,
                    "image_rotation": 0,
                    "value": {
                        "points": [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in np.reshape(RINGS[name], (-1, 2))],
                        "polygonlabels": [CLASS_OF[name]],
                    },
                }
            ]
            if name in RINGS
            else []
        )
        tasks.append(
            {
                "id": number,
                "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.png"},
                "annotations": [{"id": number, "result": results}],
            }
        )
    return tasks


def write_label_studio(root: Path, edit: Callable[[list[Content]], object] = lambda tasks: None) -> Path:
    write_images(root / "images")
    tasks = label_studio_tasks()
    edit(tasks)
    return write_json(root / "project.json", tasks)


def write_voc(root: Path, *, objects: bool = True, names: str | None = "__background__\nscratch\ndent\n") -> Path:
    write_images(root / "JPEGImages")
    for name in NAMES:
        mask = truth().get(name, np.zeros(SIZE_HW, bool))
        labels = mask.astype(np.uint8) * (1 + list(CLASS_OF.values()).index(CLASS_OF.get(name, "scratch")))
        border = labels.copy()
        border[:, :2] = 255
        for folder, values in (
            ("SegmentationClass", border),
            *((("SegmentationObject", mask.astype(np.uint8)),) if objects else ()),
        ):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(root / folder / f"{name}.png")
        listed = (
            f"<object><name>{CLASS_OF[name]}</name><bndbox><xmin>1</xmin></bndbox></object>" if name in CLASS_OF else ""
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename>{listed}</annotation>"
        )
    if names is not None:
        (root / "labels.txt").write_text(names)
    return root


def read(path: Path, name: str = "auto", **options: Any) -> RawDataset:
    return load(path, LoadOptions(**options), name=name)


def assert_as_drawn(raw: RawDataset, *, min_iou: float = 1.0) -> None:
    """Each image has its true masks under the right class, and the third one is defect-free."""
    assert sorted(Path(image.file_name).stem for image in raw.images) == list(NAMES)
    for image in raw.images:
        stem = Path(image.file_name).stem
        assert image.is_defect_free == (stem not in RINGS)
        assert [i.class_name for i in image.instances] == ([CLASS_OF[stem]] if stem in RINGS else [])
        for instance in image.instances:
            found, mask = decode(instance.rle), truth()[stem]
            assert (found & mask).sum() / (found | mask).sum() >= min_iou


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**62,
    2**64,
    10**30,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    -0.0,
    0.5,
    "",
    "0",
    "1",
    "x" * 300,
    "\0",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "é\u202e",
    "NaN",
    "1e999",
    [],
    [[]],
    [None],
    [1],
    [[1, 2], [3]],
    {},
    {"a": 1},
    [[[]]],
    [{"x": 1}],
    "a/b\\c",
    [1e308] * 8,
    [[1e9, 1e9, 0, 0, 5, 5]],
    {"size": [40, 60], "counts": "o" * 30},
    {"size": [2**31, 2**31], "counts": [2**62]},
    {"size": [40, 60], "counts": [2**62, 2**62]},
    {"size": ["40", "60"], "counts": [-1]},
    {"counts": "b'x'"},
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def mutated(value: Any, rng: random.Random) -> Any:
    """Change one to three places: another type, a huge number, a field lost or repeated."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = [place for place in places(value) if place]
        if not found:
            return rng.choice(ODD)
        *above, key = rng.choice(found)
        holder = value
        for step in above:
            holder = holder[step]
        kind = rng.random()
        if kind < 0.15:
            del holder[key]
        elif kind < 0.25 and isinstance(holder, list):
            holder.append(copy.deepcopy(rng.choice(holder)))
        elif kind < 0.4 and type(holder[key]) in (int, float) and abs(holder[key]) < 1e6:
            holder[key] *= rng.choice([-1, 0, 10, 1e6, 1e-6, 1.0])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, insert or leave out bytes."""
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        other = rng.randrange(len(data) + 1)
        junk = rng.choice(
            [b"\0", b"\xff\xfe", b'<!ENTITY a "b">', b"<" * 50, b"[" * 3000, b'"', b"\xef\xbb\xbf", b"9" * 5000]
        )
        data = rng.choice(
            [
                data[:at],
                data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
                data[:at] + junk + data[at:],
                data[:at] + data[other:],
            ]
        )
    return data
