"""Damaged folders: whatever is in them, a set is read as it should be, or refused in one line, within two seconds."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectory.errors import InputError
from defectory.formats.raw import LoadOptions, RawDataset
from defectory.rle import decode

from .folder_sets import FOLDER_FORMATS, SETS, SIZE_HW

FORMAT_OF = {"classes": "masks", "colours": "masks"}
WORDS = (
    "",
    "0",
    "-1",
    "1e999",
    "nan",
    "null",
    "~",
    "[",
    "]",
    "{",
    "}",
    "&a",
    "*a",
    ":",
    ",",
    ";",
    "\t",
    "\n",
    '"',
    "'",
    "\\",
    "/",
    "..",
    "../../x",
    "/etc/passwd",
    "C:\\x\\y.png",
    "\0",
    "é",
    "\ud83d",
    "255",
    "99999999999999999999",
    "good",
    "image",
    "mask",
    "x" * 300,
    "#ff0000",
    "0,0,0",
    "- ",
    "names",
    "0.5 0.5 0.2 0.1",
    "\x1b[2J",
    "[/x]",
    "%",
    "|",
    "a: &x [*x, *x]",
)


def damage(root: Path, rng: random.Random) -> None:
    """Change one thing of a set."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    texts = [path for path in files if path.suffix in (".csv", ".txt", ".yaml")]
    path = rng.choice(texts if texts and rng.random() < 0.6 else files)
    kind = rng.randrange(12)
    data = path.read_bytes()
    if kind <= 2:  # bytes
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) + 1)
            data = (
                data[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(0, 4))) + data[at + rng.randint(0, 4) :]
            )
        path.write_bytes(data)
    elif kind == 3:
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind <= 6:  # words of a text
        at = rng.randrange(len(data) + 1)
        path.write_bytes(
            data[:at] + rng.choice(WORDS).encode("utf-8", "surrogatepass") + data[at + rng.randint(0, 8) :]
        )
    elif kind == 7:
        lines = data.split(b"\n")
        rng.shuffle(lines)
        path.write_bytes(b"\n".join(lines) + rng.choice([b"", b"\n", lines[0] * rng.randint(1, 50)]))
    elif kind == 8:
        odd = rng.choice(
            [
                b"\xff\xfe.png",
                b"a\nb.png",
                b"con.png",
                b"x" * 250 + b".png",
                b"p0_mask.png",
                b".hidden.png",
                b"p0.jpg",
                b"p0.PNG",
            ]
        )
        Path(os.fsdecode(os.fsencode(path.parent) + b"/" + odd)).write_bytes(data)
    elif kind == 9:
        path.unlink()
        rng.choice([lambda: None, path.mkdir, lambda: path.symlink_to(path.name), lambda: path.symlink_to("/etc")])()
    elif kind == 10:
        noise = np.random.default_rng(rng.randrange(9999)).integers(
            0, rng.choice([2, 4, 40, 256]), rng.choice([SIZE_HW, (*SIZE_HW, 3), (9, 5)]), np.uint8
        )
        place = rng.choice([file for file in files if file.suffix in (".png", ".bmp", ".jpg", ".JPG")])
        Image.fromarray(noise).convert(rng.choice(["L", "RGB", "P", "1", "RGBA"])).save(place.with_suffix(".png"))
    else:
        encoding = rng.choice(["utf-16", "utf-8-sig", "utf-16-be", "cp037"])
        path.write_bytes(data.decode("latin-1").encode(encoding, "replace"))


def require_sound(raw: RawDataset) -> None:
    """Hold a raw data set to what loaders promise."""
    assert len(set(raw.class_names)) == len(raw.class_names)
    names = [image.file_name for image in raw.images]
    assert len(set(names)) == len(names)
    for image in raw.images:
        assert not (image.is_defect_free and image.instances)
        image.file_name.encode()
        assert ".." not in Path(image.file_name).parts
        assert not Path(image.file_name).is_absolute()
        for instance in image.instances:
            assert instance.class_name in raw.class_names
            assert decode(instance.rle).shape == image.size_hw
    assert all("\n" not in remark for remark in raw.remarks)


def fuzz(kind: str, seeds: range, folder: Path) -> int:
    """Damage and load a set of a kind once per seed; return how many were read."""
    chosen = next(known for known in FOLDER_FORMATS if known.name == FORMAT_OF.get(kind, kind))
    whole = SETS[kind](folder / "whole")
    read = 0
    for seed in seeds:
        rng = random.Random(f"{kind}{seed}")
        root = folder / f"damaged{seed}"
        shutil.copytree(whole, root)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            damage(root, rng)
        options = LoadOptions(
            skip_bad=rng.random() < 0.4,
            follow_links=rng.random() < 0.2,
            unlabelled=rng.choice(["skip", "skip", "refuse", "defect-free"]),
            mask_threshold=rng.choice([None, None, None, 1, 128]),
            min_area_px=rng.choice([0, 0, 9]),
        )
        began = time.process_time()
        said = ""
        try:
            for known in FOLDER_FORMATS:
                known.recognise(root)
            require_sound(chosen.load(root, options))
            read += 1
        except InputError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 1500
        assert time.process_time() - began < 2, f"seed {seed} took too long"
        shutil.rmtree(root)
    return read


@pytest.mark.parametrize("kind", SETS)
def test_a_damaged_set_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    read = fuzz(kind, range(40), tmp_path)
    assert 2 < read < 40, "the damage is neither harmless nor total"
