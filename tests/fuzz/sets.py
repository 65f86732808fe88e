"""A small valid set for every registered format and layout, and single image files of every kind. Images are 24 x 36
pixels, never square.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE_HW = (24, 36)
NAMES = ("scratch", "dent")
Mask = NDArray[np.bool_]
Ring = list[float]


def picture(number: int) -> NDArray[np.uint8]:
    """RGB uint8 noise that differs from number to number."""
    return np.random.default_rng(number).integers(60, 200, (*SIZE_HW, 3), np.uint8)


def ring(number: int) -> Ring:
    """A rectangle's outline, x and y in turn."""
    x, y = 2.0 + 3 * number, 3.0 + number
    return [x, y, x + 9, y, x + 9, y + 7, x, y + 7]


def mask(number: int) -> Mask:
    """The same rectangle as mask."""
    result = np.zeros(SIZE_HW, bool)
    result[3 + number : 10 + number, 2 + 3 * number : 11 + 3 * number] = True
    return result


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """Return an image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, content: bytes | str | NDArray[Any]) -> Path:
    """Write text, bytes or a PNG; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        encoded(content)
        if isinstance(content, np.ndarray)
        else content
        if isinstance(content, bytes)
        else content.encode()
    )
    return path


def column_runs(drawn: Mask) -> list[int]:
    """Run lengths column by column, background first."""
    flat = drawn.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *runs] if flat[0] else runs


def coco_value(*, prefix: str = "", with_rle: bool = False) -> dict[str, Any]:
    """COCO instances of five images, the last without a defect."""
    from defectory.rle import encode

    images = [
        {"id": n + 1, "file_name": f"{prefix}c{n}.png", "height": SIZE_HW[0], "width": SIZE_HW[1], "group": n}
        for n in range(5)
    ]
    annotations: list[dict[str, Any]] = []
    for n in range(4):
        segmentation: Any = [ring(n)]
        if with_rle:
            size = list(SIZE_HW)
            segmentation = {"size": size, "counts": column_runs(mask(n)) if n % 2 else encode(mask(n)).counts}
        x, y = ring(n)[:2]
        annotations.append(
            {
                "id": n + 1,
                "image_id": n + 1,
                "category_id": 1 + n % 2,
                "segmentation": segmentation,
                "bbox": [x, y, 9.0, 7.0],
                "area": 63.0,
                "iscrowd": int(with_rle and n == 3),
            }
        )
    categories = [{"id": i, "name": name, "supercategory": "defect"} for i, name in enumerate(NAMES, start=1)]
    return {"info": {"year": 2025}, "images": images, "annotations": annotations, "categories": categories}


def coco(root: Path) -> Path:
    for n in range(5):
        write(root / f"c{n}.png", picture(n))
    return write(root / "annotations.json", json.dumps(coco_value()))


def coco_rle(root: Path) -> Path:
    for n in range(5):
        write(root / "images" / f"c{n}.png", picture(n))
    write(root / "annotations" / "instances_default.json", json.dumps(coco_value(with_rle=True)))
    return root


def coco_roboflow(root: Path) -> Path:
    for subset in ("train", "valid"):
        for n in range(5):
            write(root / subset / f"c{n}.png", picture(n + 10 * (subset == "valid")))
        write(root / subset / "_annotations.coco.json", json.dumps(coco_value()))
    return root


def defectory(root: Path) -> Path:
    from defectory.dataset.config import DataConfig
    from defectory.dataset.importer import import_dataset

    coco(root / "source")
    import_dataset(DataConfig(path=str(root / "source" / "annotations.json")), root / "data")
    return root / "data"


def cvat(root: Path) -> Path:
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "  <version>1.1</version>",
        "  <meta><task><size>5</size></task></meta>",
    ]
    for n in range(5):
        write(root / "images" / f"v{n}.png", picture(n))
        lines.append(f'  <image id="{n}" name="v{n}.png" width="{SIZE_HW[1]}" height="{SIZE_HW[0]}">')
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(ring(n)[0::2], ring(n)[1::2], strict=True))
        if n < 2:
            lines.append(
                f'    <polygon label="{NAMES[n % 2]}" source="manual" occluded="0" points="{points}" z_order="0" '
                f'group_id="{n}"></polygon>'
            )
        elif n == 2:
            lines.append(
                '    <mask label="dent" source="manual" occluded="0" rle="0, 9, 3, 6" left="4" top="5" width="6" '
                'height="3" z_order="0"></mask>'
            )
        elif n == 3:
            lines.append(
                '    <ellipse label="scratch" source="manual" occluded="0" cx="14.0" cy="12.0" rx="5.0" ry="3.0" '
                'rotation="15"></ellipse>'
            )
        lines.append("  </image>")
    write(root / "annotations.xml", "\n".join([*lines, "</annotations>"]) + "\n")
    return root


def label_studio(root: Path) -> Path:
    tasks: list[dict[str, Any]] = []
    for n in range(5):
        write(root / "images" / f"s{n}.png", picture(n))
        common = {
            "original_width": SIZE_HW[1],
            "original_height": SIZE_HW[0],
            "image_rotation": 0,
            "from_name": "label",
            "to_name": "image",
        }
        points = [
            [100 * x / SIZE_HW[1], 100 * y / SIZE_HW[0]] for x, y in zip(ring(n)[0::2], ring(n)[1::2], strict=True)
        ]
        results: list[dict[str, Any]] = []
        if n < 3:
            value: dict[str, Any] = {"points": points, "closed": True, "polygonlabels": [NAMES[n % 2]]}
            results.append({**common, "id": f"r{n}", "type": "polygonlabels", "value": value})
        elif n == 3:
            value = {"x": 40.0, "y": 50.0, "radiusX": 12.0, "radiusY": 9.0, "rotation": 10, "ellipselabels": ["dent"]}
            results.append({**common, "id": f"r{n}", "type": "ellipselabels", "value": value})
        if n == 2:
            value = {"format": "rle", "rle": brush_runs(mask(4)), "brushlabels": ["scratch"]}
            results.append({**common, "id": "b", "type": "brushlabels", "value": value})
        tasks.append(
            {
                "id": n + 1,
                "data": {"image": f"/data/upload/1/s{n}.png"},
                "annotations": [{"id": n + 1, "was_cancelled": False, "result": results}],
            }
        )
    return write(root / "project.json", json.dumps(tasks))


def brush_runs(drawn: Mask) -> list[int]:
    """Label Studio's run lengths of RGBA bytes, all of the last length code."""
    values = np.repeat(drawn.reshape(-1).astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{8 - 1:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    for start in range(0, len(values), 1 << 16):
        part = values[start : start + (1 << 16)]
        place = 0
        while place < len(part):
            end = place
            while end < len(part) and part[end] == part[place]:
                end += 1
            bits += f"1{3:02b}{end - place - 1:016b}{part[place]:08b}"
            place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def voc(root: Path) -> Path:
    for n in range(5):
        write(root / "JPEGImages" / f"o{n}.jpg", encoded(picture(n), "JPEG"))
        drawn = np.zeros(SIZE_HW, np.uint8)
        if n < 4:
            drawn[mask(n)] = 1 + n % 2
            drawn[2 + n, 2 + 3 * n : 11 + 3 * n] = 255
        write(root / "SegmentationClass" / f"o{n}.png", drawn)
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>10</ymax></bndbox>"
        objects = f"<object><name>{NAMES[n % 2]}</name>{box}</object>"
        size = f"<size><width>{SIZE_HW[1]}</width><height>{SIZE_HW[0]}</height><depth>3</depth></size>"
        write(
            root / "Annotations" / f"o{n}.xml",
            f"<annotation><filename>o{n}.jpg</filename>{size}{objects if n < 4 else ''}</annotation>\n",
        )
    write(root / "ImageSets" / "Segmentation" / "train.txt", "o0\no1\no2\n")
    return root


def voc_polygons(root: Path) -> Path:
    for n in range(4):
        write(root / f"o{n}.jpg", encoded(picture(n), "JPEG"))
        points = "".join(
            f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>"
            for i, (x, y) in enumerate(zip(ring(n)[0::2], ring(n)[1::2], strict=True), start=1)
        )
        size = f"<size><width>{SIZE_HW[1]}</width><height>{SIZE_HW[0]}</height><depth>3</depth></size>"
        objects = f"<object><name>{NAMES[n % 2]}</name><polygon>{points}</polygon></object>" if n < 3 else ""
        write(
            root / f"o{n}.xml",
            f"<annotation><folder>x</folder><filename>o{n}.jpg</filename>{size}{objects}</annotation>\n",
        )
    return root


def labelme(root: Path) -> Path:
    for n in range(5):
        write(root / f"l{n}.png", picture(n))
        points = [[x, y] for x, y in zip(ring(n)[0::2], ring(n)[1::2], strict=True)]
        shapes: list[dict[str, Any]] = [
            {"label": NAMES[n % 2], "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        ]
        if n == 2:
            shapes = [
                {
                    "label": "dent",
                    "points": [[12.0, 12.0], [16.0, 12.0]],
                    "group_id": 1,
                    "shape_type": "circle",
                    "flags": {},
                }
            ]
        if n == 3:
            drawn = base64.b64encode(encoded(np.ones((5, 8), bool))).decode()
            shapes = [{"label": "dent", "points": [[4, 5], [11, 9]], "shape_type": "mask", "mask": drawn, "flags": {}}]
        value = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes if n < 4 else [],
            "imagePath": f"l{n}.png",
            "imageData": base64.b64encode(encoded(picture(n))).decode() if n == 1 else None,
            "imageHeight": SIZE_HW[0],
            "imageWidth": SIZE_HW[1],
        }
        write(root / f"l{n}.json", json.dumps(value))
    return root


def mvtec(root: Path) -> Path:
    for n in range(2):
        write(root / "train/good" / f"{n:03d}.png", picture(n))
        write(root / "test/good" / f"{n:03d}.png", picture(10 + n))
        for at, kind in enumerate(NAMES):
            write(root / "test" / kind / f"{n:03d}.png", picture(20 + 10 * at + n))
            write(root / "ground_truth" / kind / f"{n:03d}_mask.png", mask(n + at))
    return root


def visa(root: Path) -> Path:
    rows = ["object,split,label,image,mask"]
    for n in range(5):
        good = n > 3
        name = f"Data/Images/{'Normal' if good else 'Anomaly'}/{n:03d}.JPG"
        masked = "" if good else f"Data/Masks/Anomaly/{n:03d}.png"
        write(root / name, encoded(picture(n), "JPEG"))
        if masked:
            write(root / masked, mask(n).astype(np.uint8))
        rows.append(f"pcb,{'train' if n == 4 else 'test'},{'normal' if good else 'anomaly'},{name},{masked}")
    write(root / "split_csv" / "1cls.csv", "\n".join(rows) + "\n")
    return root


def severstal(root: Path) -> Path:
    rows = ["ImageId,ClassId,EncodedPixels"]
    for n in range(5):
        write(root / "train_images" / f"t{n}.png", picture(n))
        runs = column_runs(mask(n))
        ends = np.cumsum(runs)
        text = " ".join(f"{ends[i] + 1} {runs[i + 1]}" for i in range(0, len(runs) - 1, 2))
        rows.append(f"t{n}.png,{1 + n % 2},{text}" if n < 4 else f"t{n}.png,,")
    write(root / "train.csv", "\n".join(rows) + "\n")
    return root


def kolektor(root: Path) -> Path:
    for n in range(6):
        folder = root / f"kos{n // 2:02d}"
        write(folder / f"Part{n % 2}.jpg", encoded(picture(n), "JPEG"))
        write(folder / f"Part{n % 2}_label.bmp", encoded(mask(n) if n < 5 else np.zeros(SIZE_HW, bool), "BMP"))
    return root


def yolo(root: Path) -> Path:
    for n in range(5):
        write(root / "images" / f"y{n}.png", picture(n))
        numbers = " ".join(f"{v / SIZE_HW[(i + 1) % 2]:.5f}" for i, v in enumerate(ring(n)))
        write(root / "labels" / f"y{n}.txt", f"{n % 2} {numbers}\n" if n < 4 else "")
    write(root / "data.yaml", "path: .\ntrain: images\nval: images\nnc: 2\nnames:\n  0: scratch\n  1: dent\n")
    return root / "data.yaml"


def yolo_subsets(root: Path) -> Path:
    for subset in ("train", "valid"):
        for n in range(3):
            write(root / subset / "images" / f"y{n}.jpg", encoded(picture(n + 5 * (subset == "valid")), "JPEG"))
            write(
                root / subset / "labels" / f"y{n}.txt",
                f"{n % 2} 0.2 0.2 0.6 0.25 0.55 0.7 0.25 0.6\n0 0.1 0.1 0.3 0.1 0.2 0.4\n",
            )
    write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['scratch', 'dent']\nroboflow:\n  workspace: x\n",
    )
    return root


def index_csv(root: Path) -> Path:
    rows = ["image,mask,class,group,split"]
    for n in range(5):
        drawn = np.zeros(SIZE_HW, np.uint8)
        if n < 4:
            drawn[mask(n)] = 1 + n % 2
        write(root / "images" / f"p{n}.png", picture(n))
        write(root / "masks" / f"p{n}.png", drawn)
        rows.append(
            f"images/p{n}.png,masks/p{n}.png,{NAMES[n % 2] if n < 4 else ''},{n},{'train' if n < 3 else 'test'}"
        )
    return write(root / "index.csv", "\n".join(rows) + "\n")


def mask_folder(root: Path) -> Path:
    for n in range(5):
        drawn = np.zeros(SIZE_HW, np.uint8)
        if n < 4:
            drawn[mask(n)] = 1 + n % 2
        write(root / "images" / f"p{n}.png", picture(n))
        write(root / "masks" / f"p{n}.png", drawn)
    write(root / "masks" / "classes.txt", "scratch\ndent\n")
    return root


def class_folders(root: Path) -> Path:
    for n in range(5):
        write(root / "images" / f"p{n}.png", picture(n))
        write(root / "masks" / NAMES[n % 2] / f"p{n}_mask.png", mask(n))
    return root


def colour_masks(root: Path) -> Path:
    for n in range(4):
        drawn = np.zeros((*SIZE_HW, 3), np.uint8)
        drawn[mask(n)] = (220, 20, 60) if n % 2 else (0, 90, 200)
        write(root / "images" / f"p{n}.png", picture(n))
        write(root / "masks" / f"p{n}.png", drawn)
    write(
        root / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:220,20,60::\ndent:0,90,200::\n",
    )
    write(root / "colours.json", json.dumps({"scratch": [220, 20, 60], "dent": "#005ac8"}))
    return root


def deep_masks(root: Path) -> Path:
    """Images of 12 bits in 16-bit files, masks of 16 bits."""
    for n in range(4):
        write(root / "images" / f"p{n}.png", picture(n)[..., 0].astype(np.uint16) * 16)
        write(root / "masks" / f"p{n}.png", mask(n).astype(np.uint16) * (1 + n % 2))
    return root


SETS: dict[str, Callable[[Path], Path]] = {
    "defectory": defectory,
    "cvat": cvat,
    "label-studio": label_studio,
    "coco": coco,
    "coco/rle": coco_rle,
    "coco/roboflow": coco_roboflow,
    "voc": voc,
    "voc-xml": voc_polygons,
    "labelme": labelme,
    "mvtec": mvtec,
    "visa": visa,
    "severstal": severstal,
    "kolektor": kolektor,
    "yolo": yolo,
    "yolo/subsets": yolo_subsets,
    "index-csv": index_csv,
    "masks": mask_folder,
    "masks/classes": class_folders,
    "masks/colours": colour_masks,
    "masks/deep": deep_masks,
}
"""By registered name, and layout where there are several."""


def tiff(values: NDArray[Any], **options: Any) -> bytes:
    """A TIFF file with strips, written by OpenCV."""
    return cv2.imencode(".tif", values, [cv2.IMWRITE_TIFF_COMPRESSION, options.get("compression", 1)])[1].tobytes()


def images() -> dict[str, bytes]:
    """Image files of every kind that is read, by name."""
    rgb = picture(0)
    grey, alpha = rgb[..., 0], np.full((*SIZE_HW, 1), 200, np.uint8)
    deep = grey.astype(np.uint16) * 16
    exif = Image.Exif()
    exif[0x0112] = 6
    pages, buffer, gif = [Image.fromarray(picture(n)) for n in range(3)], io.BytesIO(), io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    pages[0].save(gif, "GIF", save_all=True, append_images=pages[1:])
    palette = io.BytesIO()
    Image.fromarray(rgb).quantize(16).save(palette, "PNG", transparency=3)
    return {
        "rgb.png": encoded(rgb),
        "grey.png": encoded(grey),
        "deep.png": encoded(deep),
        "rgba.png": encoded(np.concatenate([rgb, alpha], axis=2)),
        "deep_rgb.png": cv2.imencode(".png", np.repeat(deep[..., None], 3, axis=2))[1].tobytes(),
        "palette.png": palette.getvalue(),
        "one_bit.png": encoded(mask(1)),
        "rgb.jpg": encoded(rgb, "JPEG", quality=80),
        "turned.jpg": encoded(rgb, "JPEG", exif=exif.tobytes(), progressive=True),
        "cmyk.jpg": _cmyk(rgb),
        "rgb.tif": tiff(rgb),
        "deep.tif": tiff(deep),
        "float.tif": tiff(grey.astype(np.float32) / 255),
        "packed.tif": tiff(deep, compression=8),
        "pages.tif": buffer.getvalue(),
        "rgb.bmp": encoded(rgb, "BMP"),
        "rgb.webp": encoded(rgb, "WEBP", lossless=True),
        "pages.gif": gif.getvalue(),
        "no_tags.tif": struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 0),
    }


def _cmyk(rgb: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()
