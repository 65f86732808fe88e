"""Time and peak memory from a large COCO set to its tiles: import, check, split, tiles, each in a process of its own.

Makes the images first, where they are not there yet: procedural surfaces as JPEG files, each with instances of several
kinds (blobs and long cracks as polygons, every fifth as run-length encoding). Run:

    python bench/large_import.py FOLDER --images 1000 --size 1960x2560 --instances 10
    python bench/large_import.py FOLDER --images 50 --size 6000x8000 --tile-px 128

FOLDER gets `source/`, `data/` and `tiles/`; `--clean` removes the latter two before and after. Prints a line per step:
seconds, CPU seconds, the peak memory of the process and its children (10^9 bytes), and what came out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
STEPS = ("import", "check", "split", "tiles")
CLASSES = ("dent", "crack", "stain")
SAMPLE_EVERY_S = 0.02


def surface(size_hw: tuple[int, int], seed: int, grain: NDArray[np.float32]) -> Image:
    """Return a grey surface RGB uint8 [H,W,3]: clouds of two sizes of its own, and grain from one shared texture at a
    random place.
    """
    rng = np.random.default_rng([1, seed])
    height, width = size_hw
    level = np.full(size_hw, rng.uniform(90, 160), np.float32)
    for divisor, amplitude in ((32, 18.0), (8, 12.0)):
        clouds = rng.standard_normal((-(-height // divisor), -(-width // divisor))).astype(np.float32) * amplitude
        level += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_LINEAR)
    for top in range(0, height, grain.shape[0]):
        for left in range(0, width, grain.shape[1]):
            y, x = rng.integers(0, 64, 2)
            part = grain[y:, x:][: height - top, : width - left]
            level[top : top + part.shape[0], left : left + part.shape[1]] += part
    return np.repeat(np.clip(level, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def outline(size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int32]:
    """Return the outline int32 [n,2] (x, y) of a blob of 40 to 400 px or of a crack of up to half the image."""
    centre = rng.uniform((0.1 * size_hw[1], 0.1 * size_hw[0]), (0.9 * size_hw[1], 0.9 * size_hw[0]))
    if rng.random() < 0.6:
        angles = np.linspace(0, 2 * np.pi, int(rng.integers(24, 80)), endpoint=False)
        radius = np.exp(rng.uniform(np.log(20), np.log(200))) * (1 + 0.25 * np.sin(3 * angles + rng.uniform(0, 6)))
        points = centre + radius[:, None] * np.stack([np.cos(angles), rng.uniform(0.4, 1) * np.sin(angles)], axis=1)
    else:
        steps = np.cumsum(rng.normal(0, 1, (int(rng.integers(20, 120)), 2)) * 8 + rng.normal(0, 6, 2), axis=0)
        line = centre + steps
        points = np.concatenate([line, line[::-1] + np.array((0, rng.uniform(3, 9)))])
    return np.clip(np.round(points), 0, (size_hw[1] - 1, size_hw[0] - 1)).astype(np.int32)


def make(folder: Path, *, images: int, size_hw: tuple[int, int], instances: int) -> None:
    """Write `images/` and `annotations.json`."""
    from defectory.rle import encode_crop

    grain = np.random.default_rng(0).standard_normal((1024 + 64, 1024 + 64)).astype(np.float32) * 6
    height, width = size_hw
    coco: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        rng = np.random.default_rng([2, number])
        image = surface(size_hw, number, grain)
        name = f"part-{number:05d}.jpg"
        for _ in range(instances):
            points = outline(size_hw, rng)
            shade = int(rng.integers(20, 70))
            cv2.fillPoly(image, [points], (shade, shade, shade))
            x0, y0 = points.min(axis=0)
            segmentation: object = [points.reshape(-1).astype(float).tolist()]
            if len(coco["annotations"]) % 5 == 4:
                crop = np.zeros(np.ptp(points, axis=0)[::-1] + 1, np.uint8)
                cv2.fillPoly(crop, [points - (x0, y0)], (1,))
                segmentation = {
                    "size": [height, width],
                    "counts": encode_crop(crop > 0, (int(x0), int(y0)), size_hw).counts,
                }
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": int(rng.integers(1, 4)),
                    "segmentation": segmentation,
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / "images" / name), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        coco["images"].append({"id": number + 1, "file_name": f"images/{name}", "height": height, "width": width})
    (folder / "annotations.json").write_text(json.dumps(coco))


def step(name: str, folder: Path, tile_px: int) -> str:
    """Run one step in this process and return what came out of it."""
    from defectory.artifacts.dataset import MANIFEST, Dataset
    from defectory.artifacts.split import Split
    from defectory.dataset.check import check_dataset, write_contact_sheet
    from defectory.dataset.config import DataConfig, SplitConfig, TilingConfig
    from defectory.dataset.importer import import_dataset
    from defectory.dataset.split.make import make_split
    from defectory.dataset.tiles import choose_tiling, cut_tiles
    from defectory.events import finish

    data = folder / "data"
    if name == "import":
        dataset = import_dataset(DataConfig(path=str(folder / "source" / "annotations.json")), data).dataset
        return (
            f"{len(dataset.images)} images, {sum(len(r.instances) for r in dataset.images)} instances, "
            f"{len(dataset.remarks)} remarks"
        )
    dataset = Dataset.load(data / MANIFEST)
    if name == "check":
        report = check_dataset(data, dataset)
        write_contact_sheet(data, dataset, folder / "sheet.png")
        return f"{report.num_instances} instances, {len(report.problems)} problems"
    if name == "split":
        split = make_split(data, dataset, SplitConfig())
        split.save(folder / "split.json")
        return (
            f"train {len(split.train)}, val {len(split.val)}, test {len(split.test)}, {split.num_merges} merges "
            "of groups with near-duplicates"
        )
    split = Split.load(folder / "split.json")
    tiling = choose_tiling(dataset, split, TilingConfig(), tile_px)
    cutting = cut_tiles(
        data,
        dataset,
        split,
        tiling,
        subsets=("train", "pool", "val"),
        out=folder / "tiles",
        config=TilingConfig(),
        seed=0,
    )
    tiles = finish(cutting)
    counts = ", ".join(f"{subset} {len(tiles.of(subset))}" for subset in ("train", "pool", "val"))
    return f"{tiling.mode} mode, {tiling.tile_px} px: {counts}"


def measured(command: list[str]) -> tuple[float, float, str]:
    """Run a command and return seconds, the peak memory of its process tree in GB (10^9 bytes), and its last line."""
    import psutil

    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most, ended = [0], threading.Event()

    def watch() -> None:
        own = psutil.Process(process.pid)
        while not ended.wait(SAMPLE_EVERY_S):
            held = 0
            try:
                tree = [own, *own.children(recursive=True)]
            except psutil.Error:
                return
            for one in tree:
                try:
                    held += one.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            most[0] = max(most[0], held)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    told, _ = process.communicate()
    seconds = time.monotonic() - began
    ended.set()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, most[0] / 1e9, (told.strip().splitlines() or [""])[-1]


def main() -> None:
    """Make the set and run the steps, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", default="1960x2560", help="height x width")
    parser.add_argument("--instances", type=int, default=10, help="of each image")
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        told = step(args.step, args.folder, args.tile_px)
        own = resource.getrusage(resource.RUSAGE_SELF)
        print(
            json.dumps({"told": told, "own_peak_gb": own.ru_maxrss * 1024 / 1e9, "cpu_s": own.ru_utime + own.ru_stime})
        )
        return
    height, width = map(int, args.size.split("x"))
    source = args.folder / "source"
    if not source.exists():
        began = time.monotonic()
        make(source, images=args.images, size_hw=(height, width), instances=args.instances)
        total = sum(path.stat().st_size for path in (source / "images").iterdir())
        print(
            f"made {args.images} images of {height} x {width}, {total / 1e9:.2f} GB, in "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    cleaned = ("data", "tiles") if args.clean else ()
    for name in cleaned:
        shutil.rmtree(args.folder / name, ignore_errors=True)
    print(f"{'step':8} {'seconds':>8} {'CPU s':>8} {'peak GB':>8}", flush=True)
    for name in args.steps:
        command = [
            sys.executable,
            os.fspath(Path(__file__).resolve()),
            os.fspath(args.folder),
            "--step",
            name,
            "--tile-px",
            str(args.tile_px),
        ]
        seconds, peak, line = measured(command)
        out = json.loads(line)
        print(
            f"{name:8} {seconds:8.1f} {out['cpu_s']:8.1f} {max(peak, out['own_peak_gb']):8.2f}  {out['told']}",
            flush=True,
        )
    for name in cleaned:
        shutil.rmtree(args.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
