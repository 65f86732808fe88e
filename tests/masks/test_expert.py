from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import MaskBank, MaskBankEntry
from defectory.errors import AnnotationError, OutputError
from defectory.filenames import file_names_of
from defectory.images.save import save_png
from defectory.masks.expert import class_names_of_folders, read_folder, write_review
from defectory.rle import encode

SIZE_HW = (20, 34)
SHEET = np.zeros((10, 14, 3), np.uint8)
ODD_NAMES = (
    "../../../x",
    "/etc/passwd",
    "a/b",
    "",
    "n" * 300,
    "n" * 299 + "m",
    "Crack",
    "crack",
    "a%2Fb",
    "..",
    "nul",
    "x~",
    "Riß",
    "@eaDir",
    ".hidden",
    "C:\\x",
)


def bank_of(names: tuple[str, ...]) -> tuple[MaskBank, tuple[Category, ...]]:
    entries: list[MaskBankEntry] = []
    for number in range(1, len(names) + 1):
        mask = np.zeros(SIZE_HW, bool)
        mask[4:12, 3 : 4 + number] = True
        label = Instance(category_id=number, rle=encode(mask))
        entries.append(MaskBankEntry(id=f"train-{number}-m00", tile_id="t", image_id=1, category_id=number, mask=label))
    return MaskBank(split_digest="s", entries=tuple(entries)), tuple(
        Category(id=i, name=name) for i, name in enumerate(names, start=1)
    )


def test_class_names_of_any_kind_stay_inside_the_folder_and_come_back(tmp_path: Path) -> None:
    bank, categories = bank_of(ODD_NAMES)
    out = tmp_path / "work" / "review"
    assert write_review(bank, categories, SHEET, out) == len(ODD_NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["review"]
    assert len([path for path in out.iterdir() if path.is_dir()]) == len(ODD_NAMES)
    supplied, read = read_folder(out, bank=bank, categories=categories, scale=1.0, tile_px=64)
    assert (supplied, read) == ((), bank)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(max_size=12), min_size=1, max_size=6, unique=True))
def test_folders_of_any_names_stand_for_their_classes(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    written = file_names_of(names)
    for name in written.values():
        (folder / name).mkdir()
    found = class_names_of_folders(folder, names)
    assert {path.name: name for path, name in found.items()} == {name: text for text, name in written.items()}


def test_a_folder_named_as_its_class_is_read_and_litter_is_passed_over(tmp_path: Path) -> None:
    bank, categories = bank_of(("Crack", "crack", "x~"))
    mask = np.zeros(SIZE_HW, np.uint8)
    mask[2:9, 5:14] = 255
    for name in ("crack/a.PNG", "x~/b.Png", "Crack/c.png"):
        save_png(tmp_path / name, mask)
    for litter in (".ipynb_checkpoints/d.png", "@eaDir/e.png", "crack/._a.png", "crack/Thumbs.db", "__MACOSX/f.png"):
        (tmp_path / litter).parent.mkdir(exist_ok=True)
        (tmp_path / litter).write_bytes(b"no image")
    supplied, _ = read_folder(tmp_path, bank=bank, categories=categories, scale=1.0, tile_px=64)
    assert [(m.id, m.category_id) for m in supplied] == [("c", 1), ("a", 2), ("b", 3)]
    (tmp_path / "dent").mkdir()
    with pytest.raises(AnnotationError, match="class 'dent' is not in the data set"):
        read_folder(tmp_path, bank=bank, categories=categories, scale=1.0, tile_px=64)


def test_a_review_replaces_a_review_and_nothing_else(tmp_path: Path) -> None:
    bank, categories = bank_of(("crack",))
    for _ in range(2):
        write_review(bank, categories, SHEET, tmp_path / "review")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(OutputError) as caught:
        write_review(bank, categories, SHEET, mine)
    assert "\n" not in str(caught.value)
    assert [path.name for path in mine.iterdir()] == ["notes.json"]
