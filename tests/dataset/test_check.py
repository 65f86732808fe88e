from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.dataset import check as check_module
from defectory.dataset.check import CELL_PX, MAX_ROWS, MAX_SHOWN, OUTLINE, check_dataset, write_contact_sheet
from defectory.drawing import write_text
from defectory.files import digest_file
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import Rle, encode

SIZE_HW = (60, 100)


def mask_of(top: int, height: int) -> Rle:
    mask = np.zeros(SIZE_HW, bool)
    mask[top : top + height, 10:30] = True
    return encode(mask)


def make_dataset(
    folder: Path, *, count: int = 6, names: tuple[str, ...] = ("dent", "crack"), remarks: tuple[str, ...] = ()
) -> Dataset:
    records: list[ImageRecord] = []
    for number in range(count):
        name = f"{number:03d}.png"
        save_png(
            folder / "images" / name, np.random.default_rng(number).integers(0, 90, (*SIZE_HW, 3)).astype(np.uint8)
        )
        instances = () if number % 3 == 2 else (Instance(category_id=1 + number % 2, rle=mask_of(5 + number % 40, 4)),)
        digest = digest_file(folder / "images" / name)
        records.append(
            ImageRecord(id=number + 1, file_name=name, size_hw=SIZE_HW, sha256=digest, group=name, instances=instances)
        )
    categories = tuple(Category(id=number, name=name) for number, name in enumerate(names, start=1))
    return Dataset(categories=categories, images=tuple(records), remarks=remarks)


def test_a_whole_set_has_counts_and_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path, remarks=("3 images are turned by EXIF",))
    monkeypatch.setattr(check_module, "load_rgb", None)  # bytes that are as imported are not decoded again
    report = check_dataset(tmp_path, dataset)
    assert (report.num_images, report.num_defect_free, report.num_instances, report.num_groups) == (6, 2, 4, 6)
    assert report.instances_per_class == {"dent": 2, "crack": 2}
    assert report.sizes_hw == {"60 x 100": 6}
    assert report.area_quantiles_px["50%"] == 80
    assert report.remarks == ("3 images are turned by EXIF",)
    assert report.problems == ()


def test_every_kind_of_damage_is_told(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, names=("dent", "crack", "unused"))
    images = tmp_path / "images"
    (images / "000.png").unlink()
    (images / "001.png").write_bytes(b"no image")
    save_png(images / "002.png", np.zeros((*SIZE_HW, 3), np.uint8))
    save_png(images / "003.png", np.zeros((40, 50, 3), np.uint8))
    (images / "005.png").write_bytes((images / "004.png").read_bytes())
    broken = [
        Instance(category_id=1, rle=Rle(size_hw=SIZE_HW, counts="~~")),
        Instance(category_id=1, rle=mask_of(5, 0)),
    ]
    broken.append(Instance(category_id=2, rle=Rle(size_hw=(50, 120), counts=mask_of(5, 3).counts)))
    last = dataset.images[4].model_copy(update={"instances": tuple(broken)})
    report = check_dataset(
        tmp_path, dataset.model_copy(update={"images": (*dataset.images[:4], last, dataset.images[5])})
    )
    told = "\n".join(report.problems)
    for part in (
        "000.png: cannot be read",
        "001.png",
        "002.png: bytes changed since import",
        "003.png: size changed since import, from 60 x 100 to 40 x 50",
        "004.png: the mask of a dent is damaged",
        "004.png: dent of 0 px, too small to learn from",
        "004.png: the mask of a crack is not of the image's size",
        "005.png: the same file as 004.png",
        "class unused has no instance",
    ):
        assert part in told
    assert not any("\n" in line for line in report.problems)


def test_many_problems_of_a_kind_are_counted(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, count=1)
    records = [
        dataset.images[0].model_copy(
            update={
                "id": number + 1,
                "file_name": f"missing-{number}.png",
                "instances": (Instance(category_id=1, rle=mask_of(1, 0)),) * 2,
            }
        )
        for number in range(300)
    ]
    report = check_dataset(tmp_path, dataset.model_copy(update={"images": tuple(records)}))
    assert len(report.problems) == 2 * (MAX_SHOWN + 1) + 1
    assert "295 more images that cannot be read" in report.problems
    assert "595 more instances under 9 px" in report.problems
    assert report.num_instances == 600


def test_text_from_data_is_one_printable_line(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, names=("dent", "crack", "a\x1b[31m\nb"))
    assert check_dataset(tmp_path, dataset).problems == ("class a\\x1b[31m\\nb has no instance",)


def test_the_sheet_reads_what_it_shows_and_greys_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path, count=40)
    (tmp_path / "images" / "000.png").write_bytes(b"no image")
    read: list[str] = []

    def load(path: Path, value_range: object) -> np.ndarray:
        read.append(path.name)
        return load_rgb(path)

    monkeypatch.setattr(check_module, "load_rgb", load)
    write_contact_sheet(tmp_path, dataset, tmp_path / "sheet.png", per_class=4)
    sheet = load_rgb(tmp_path / "sheet.png")
    assert len(read) == 3 * 4
    assert sheet.shape == (3 * (96 + 16 + 4) + 4, 4 * (CELL_PX + 4) + 4, 3)
    assert (sheet[4:90, 4:160] == 128).all()
    # a band of four rows lies at row 6 of a cell whose image is enlarged 1.6 times
    assert (sheet[4:100, 4 + 164 : 4 + 164 + CELL_PX] == OUTLINE).all(axis=2).any()


def test_outlines_stay_visible_where_images_are_shrunk(tmp_path: Path) -> None:
    size_hw = (1200, 1600)
    save_png(tmp_path / "images" / "large.png", np.zeros((*size_hw, 3), np.uint8))
    mask = np.zeros(size_hw, bool)
    mask[600:608, 400:1200] = True
    record = ImageRecord(
        id=1,
        file_name="large.png",
        size_hw=size_hw,
        sha256="x",
        group="a",
        instances=(Instance(category_id=1, rle=encode(mask)),),
    )
    write_contact_sheet(
        tmp_path, Dataset(categories=(Category(id=1, name="Größe"),), images=(record,)), tmp_path / "sheet.png"
    )
    sheet = load_rgb(tmp_path / "sheet.png")
    assert (sheet[4:124, 4:164] == OUTLINE).all(axis=2).sum() > 100


def test_a_sheet_of_many_classes_is_bounded(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, count=3, names=tuple(f"class {number}" for number in range(500)))
    write_contact_sheet(tmp_path, dataset, tmp_path / "sheet.png", per_class=2)
    assert load_rgb(tmp_path / "sheet.png").shape[0] <= MAX_ROWS * (CELL_PX + 20) + 4


def test_a_label_is_written_in_the_letters_that_the_font_has() -> None:
    def written(text: str) -> np.ndarray:
        image = np.zeros((20, 120, 3), np.uint8)
        write_text(image, text, (2, 14), size=0.36, colour=(255, 255, 255))
        return image

    assert (written("Größe naïve") == written("Grosse naive")).all()
    assert (written("划痕\x1b") == written("???")).all()
    assert written("Grosse").any()
