"""Small sets of images and masks, laid out as the folder formats have them. Images are 24 x 36 pixels, never square."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectory.formats.index_csv import INDEX_CSV
from defectory.formats.kolektor import KOLEKTOR
from defectory.formats.mask_folders import MASK_FOLDER
from defectory.formats.mvtec import MVTEC
from defectory.formats.raw import LoadOptions, RawDataset, RawImage
from defectory.formats.severstal import SEVERSTAL
from defectory.formats.visa import VISA
from defectory.formats.yolo import YOLO
from defectory.rle import decode

SIZE_HW = (24, 36)
FOLDER_FORMATS = (MVTEC, VISA, SEVERSTAL, KOLEKTOR, YOLO, INDEX_CSV, MASK_FOLDER)
"""In the order in which the registry tries them."""
Mask = NDArray[np.bool_]


def picture(number: int) -> NDArray[np.uint8]:
    """RGB uint8 noise that differs from number to number."""
    return np.random.default_rng(number).integers(60, 200, (*SIZE_HW, 3), np.uint8)


def box(x: int, y: int, width: int = 8, height: int = 6) -> Mask:
    """A rectangle as mask."""
    mask = np.zeros(SIZE_HW, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def write(path: Path, content: bytes | str | NDArray[np.generic]) -> Path:
    """Write text, bytes or an image; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content.astype(np.uint8) * 255 if content.dtype == bool else content).save(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load(path: Path, name: str = "auto", **options: object) -> RawDataset:
    """Load a set, in the recognised format or the named one."""
    chosen = next(
        known for known in FOLDER_FORMATS if (known.recognise(path) if name == "auto" else known.name == name)
    )
    return chosen.load(path, LoadOptions(**options))  # type: ignore[arg-type]


def by_name(raw: RawDataset) -> dict[str, RawImage]:
    """The images by their names."""
    return {image.file_name: image for image in raw.images}


def union(image: RawImage, class_name: str) -> Mask:
    """The pixels of a class on an image."""
    result = np.zeros(image.size_hw, bool)
    for instance in image.instances:
        if instance.class_name == class_name:
            result |= decode(instance.rle)
    return result


def index_set(root: Path, maps: Mapping[str, NDArray[np.generic]], *, suffix: str = ".png") -> Path:
    """`images/` and `masks/`: an image per entry and its mask."""
    for number, (stem, mask) in enumerate(maps.items()):
        write(root / "images" / f"{stem}.png", picture(number))
        write(root / "masks" / f"{stem}{suffix}", mask)
    return root


def values(*drawn: tuple[int, Mask]) -> NDArray[np.uint8]:
    """A map of values."""
    result = np.zeros(SIZE_HW, np.uint8)
    for value, mask in drawn:
        result[mask] = value
    return result


def runs(mask: Mask) -> str:
    """Run lengths as Severstal's: column by column, from 1."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1) + 1, np.flatnonzero(np.diff(flat) == -1) + 1
    return " ".join(f"{start} {end - start}" for start, end in zip(starts, ends, strict=True))


def mask_folder_set(root: Path) -> Path:
    index_set(root, {f"p{n}": values((1 + n % 2, box(2 + 3 * n, 3))) for n in range(5)} | {"p5": values()})
    write(root / "masks" / "classes.txt", "scratch\ndent\n")
    return root


def class_folder_set(root: Path) -> Path:
    for number in range(6):
        write(root / "images" / f"p{number}.png", picture(number))
        write(root / "masks" / ("dent" if number % 2 else "scratch") / f"p{number}_mask.png", box(2 + 3 * number, 4))
    return root


def colour_set(root: Path) -> Path:
    for number in range(5):
        mask = np.zeros((*SIZE_HW, 3), np.uint8)
        mask[box(2 + 3 * number, 3)] = (220, 20, 60) if number % 2 else (0, 90, 200)
        write(root / "images" / f"p{number}.png", picture(number))
        write(root / "masks" / f"p{number}.png", mask)
    write(
        root / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:220,20,60::\ndent:0,90,200::\n",
    )
    return root


def csv_set(root: Path) -> Path:
    rows = ["image,mask,class,group,split"]
    for number in range(6):
        drawn = values((1 + number % 2, box(2 + 3 * number, 3))) if number < 5 else values()
        write(root / "images" / f"p{number}.png", picture(number))
        write(root / "masks" / f"p{number}.png", drawn)
        class_name = ("scratch", "dent")[number % 2] if number < 5 else ""
        rows.append(
            f"images/p{number}.png,masks/p{number}.png,{class_name},{number // 2},{'train' if number < 4 else 'test'}"
        )
    write(root / "index.csv", "\n".join(rows) + "\n")
    return root


def mvtec_set(root: Path) -> Path:
    for number in range(3):
        write(root / "train/good" / f"{number:03d}.png", picture(number))
        write(root / "test/good" / f"{number:03d}.png", picture(10 + number))
        for at, kind in enumerate(("dent", "scratch")):
            write(root / "test" / kind / f"{number:03d}.png", picture(20 + 10 * at + number))
            write(root / "ground_truth" / kind / f"{number:03d}_mask.png", box(4 + 9 * at, 3 + number))
    return root


def visa_set(root: Path) -> Path:
    rows = ["object,split,label,image,mask"]
    for number in range(6):
        good = number > 3
        name = f"pcb/Data/Images/{'Normal' if good else 'Anomaly'}/{number:03d}.JPG"
        mask = "" if good else f"pcb/Data/Masks/Anomaly/{number:03d}.png"
        write(root / name, picture(number))
        if mask:
            write(root / mask, values((1, box(2 + 4 * number, 5))))
        rows.append(f"pcb,{'train' if number == 5 else 'test'},{'normal' if good else 'anomaly'},{name},{mask}")
    write(root / "split_csv" / "1cls.csv", "\n".join(rows) + "\n")
    return root


def kolektor_set(root: Path) -> Path:
    for number in range(6):
        folder = root / f"kos{number // 2:02d}"
        write(folder / f"Part{number % 2}.jpg", picture(number))
        write(folder / f"Part{number % 2}_label.bmp", box(3 + 3 * number, 4) if number < 4 else np.zeros(SIZE_HW, bool))
    return root


def severstal_set(root: Path) -> Path:
    rows = ["ImageId,ClassId,EncodedPixels"]
    for number in range(5):
        write(root / "train_images" / f"s{number}.png", picture(number))
        rows.append(
            f"s{number}.png,{1 + number % 2},{runs(box(2 + 3 * number, 3))}" if number < 4 else f"s{number}.png,,"
        )
    write(root / "train.csv", "\n".join(rows) + "\n")
    return root


def yolo_set(root: Path) -> Path:
    for number in range(6):
        write(root / "images" / f"y{number}.png", picture(number))
        line = f"{number % 2} 0.2 0.2 0.6 0.25 0.55 0.7 0.25 0.6\n" if number < 4 else ""
        write(root / "labels" / f"y{number}.txt", line)
    write(root / "data.yaml", "train: images\nnc: 2\nnames: [scratch, dent]\n")
    return root


SETS: dict[str, Callable[[Path], Path]] = {
    "masks": mask_folder_set,
    "classes": class_folder_set,
    "colours": colour_set,
    "index-csv": csv_set,
    "mvtec": mvtec_set,
    "visa": visa_set,
    "kolektor": kolektor_set,
    "severstal": severstal_set,
    "yolo": yolo_set,
}
