"""VisA, masks beside images (Kolektor), and run lengths in a CSV (Severstal)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectory.errors import AnnotationError, InputError
from defectory.formats.severstal import rle_of_row
from defectory.rle import decode

from .folder_sets import (
    SIZE_HW,
    box,
    by_name,
    kolektor_set,
    load,
    picture,
    runs,
    severstal_set,
    union,
    values,
    visa_set,
    write,
)


class TestVisa:
    def test_rows_are_read_and_normal_ones_are_defect_free(self, tmp_path: Path) -> None:
        for source in (visa_set(tmp_path), tmp_path / "split_csv" / "1cls.csv"):
            raw = load(source)
            assert raw.layout == "VisA CSV (1cls.csv)"
            assert raw.class_names == ("anomaly",)
            assert [image.is_defect_free for image in raw.images] == [False] * 4 + [True] * 2
            assert {image.subset for image in raw.images} == {None}
            assert any("no defects in train" in remark for remark in raw.remarks)

    def test_folders_of_one_object_are_read_without_a_table(self, tmp_path: Path) -> None:
        raw = load(visa_set(tmp_path) / "pcb")
        assert raw.layout.startswith("VisA folders")
        assert len(raw.images) == 6
        assert np.array_equal(union(by_name(raw)["Anomaly/001.JPG"], "anomaly"), box(6, 5))
        assert sum(image.is_defect_free for image in raw.images) == 2

    def test_several_objects_are_listed(self, tmp_path: Path) -> None:
        path = visa_set(tmp_path) / "split_csv" / "1cls.csv"
        path.write_text(path.read_text().replace("\npcb,", "\ncandle,", 2))
        with pytest.raises(AnnotationError, match=r"2 objects \(candle, pcb\)"):
            load(path)

    def test_an_anomaly_without_a_mask_is_never_defect_free(self, tmp_path: Path) -> None:
        path = visa_set(tmp_path) / "split_csv" / "1cls.csv"
        path.write_text(path.read_text().replace("pcb/Data/Masks/Anomaly/002.png", ""))
        raw = load(path)
        assert len(raw.images) == 5
        assert any("1 image without a mask left out" in remark for remark in raw.remarks)

    def test_image_anno_names_kinds_and_lies_in_the_object(self, tmp_path: Path) -> None:
        root = visa_set(tmp_path) / "pcb"
        rows = ["image,label,mask"]
        rows += [
            f"pcb/Data/Images/Anomaly/00{n}.JPG,{'bent' if n % 2 else 'melt'},pcb/Data/Masks/Anomaly/00{n}.png"
            for n in range(4)
        ]
        rows += [f"pcb/Data/Images/Normal/00{n}.JPG,normal," for n in (4, 5)]
        path = write(root / "image_anno.csv", "\n".join(rows))
        raw = load(root)
        assert raw.class_names == ("melt", "bent")
        assert sum(image.is_defect_free for image in raw.images) == 2
        path.write_text(path.read_text().replace("001.JPG,bent", '001.JPG,"bent,melt"'))
        raw = load(root)
        assert raw.class_names == ("anomaly",)
        assert any("several kinds" in remark for remark in raw.remarks)


class TestMasksBesideImages:
    def test_kolektor_parts_are_groups_and_empty_masks_say_defect_free(self, tmp_path: Path) -> None:
        raw = load(kolektor_set(tmp_path))
        assert raw.layout.startswith("KolektorSDD ")
        assert raw.class_names == ("defect",)
        assert [image.is_defect_free for image in raw.images] == [False] * 4 + [True] * 2
        assert len({image.group for image in raw.images}) == 3

    def test_kolektor_2_has_subsets(self, tmp_path: Path) -> None:
        for subset in ("train", "test"):
            for number in range(3):
                write(tmp_path / subset / f"1000{number}.png", picture(number))
                write(
                    tmp_path / subset / f"1000{number}_GT.png",
                    box(3, 3 + number) if number else np.zeros(SIZE_HW, bool),
                )
        raw = load(tmp_path)
        assert raw.layout.startswith("KolektorSDD2 ")
        assert {image.subset for image in raw.images} == {"train", "test"}
        assert sum(image.is_defect_free for image in raw.images) == 2
        assert len({image.file_name for image in raw.images}) == 6

    def test_roboflow_masks_have_a_table_of_values(self, tmp_path: Path) -> None:
        for number in range(3):
            write(tmp_path / "train" / f"a{number}.jpg", picture(number))
            write(tmp_path / "train" / f"a{number}_mask.png", values((1, box(2, 3)), (2, box(20, 3 + number))))
        write(tmp_path / "train" / "_classes.csv", "Pixel Value, Class\n0, background\n1, scratch\n2, dent\n")
        raw = load(tmp_path)
        assert raw.class_names == ("scratch", "dent")
        assert np.array_equal(union(by_name(raw)["train/a1.jpg"], "dent"), box(20, 4))

    def test_an_image_without_a_mask_is_left_out_and_a_mask_without_an_image_is_one_line(self, tmp_path: Path) -> None:
        kolektor_set(tmp_path)
        write(tmp_path / "kos00" / "Part9.jpg", picture(9))
        raw = load(tmp_path)
        assert len(raw.images) == 6
        assert any("1 image without a mask left out (first: kos00/Part9.jpg" in remark for remark in raw.remarks)
        write(tmp_path / "kos00" / "Part8_label.bmp", box(3, 3))
        with pytest.raises(AnnotationError, match=r"^kos00/Part8_label\.bmp: a mask without an image"):
            load(tmp_path)

    def test_a_folder_of_images_alone_is_not_recognised(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", picture(0))
        write(tmp_path / "b_mask.png", picture(1))
        with pytest.raises(StopIteration):
            load(tmp_path)


class TestRunLengths:
    def test_rows_are_read_and_a_row_without_runs_is_defect_free(self, tmp_path: Path) -> None:
        for source in (severstal_set(tmp_path), tmp_path / "train.csv"):
            raw = load(source)
            assert raw.class_names == ("1", "2")
            images = by_name(raw)
            assert np.array_equal(union(images["s1.png"], "2"), box(5, 3))
            assert images["s4.png"].is_defect_free

    def test_image_and_class_in_one_column(self, tmp_path: Path) -> None:
        severstal_set(tmp_path)
        rows = [
            f"s{n}.png_{c},{runs(box(2 + 3 * n, 3)) if c == 1 + n % 2 and n < 4 else ''}"
            for n in range(5)
            for c in (1, 2, 3, 4)
        ]
        write(tmp_path / "train.csv", "ImageId_ClassId,EncodedPixels\n" + "\n".join(rows))
        raw = load(tmp_path)
        assert [image.is_defect_free for image in raw.images] == [False] * 4 + [True]
        assert raw.class_names == ("1", "2")

    def test_parts_of_a_row_are_instances_unless_rows_are(self, tmp_path: Path) -> None:
        severstal_set(tmp_path)
        two = box(2, 3) | box(20, 3)
        write(
            tmp_path / "train.csv", f"ImageId,ClassId,EncodedPixels\ns0.png,1,{runs(two)}\ns1.png,1,{runs(box(1, 1))}\n"
        )
        assert len(load(tmp_path).images[0].instances) == 2
        write(
            tmp_path / "train.csv", f"ImageId,EncodedPixels\ns0.png,{runs(two)}\ns0.png,{runs(box(2, 15))}\ns1.png,\n"
        )
        raw = load(tmp_path)
        assert raw.class_names == ("defect",)
        assert [len(image.instances) for image in raw.images] == [2, 0]

    def test_images_without_a_row_are_not_defect_free(self, tmp_path: Path) -> None:
        severstal_set(tmp_path)
        write(tmp_path / "train_images" / "more.png", picture(77))
        raw = load(tmp_path)
        assert "more.png" not in by_name(raw)
        assert any("1 image without a row left out (first: more.png" in remark for remark in raw.remarks)
        assert by_name(load(tmp_path, unlabelled="defect-free"))["more.png"].is_defect_free
        with pytest.raises(AnnotationError, match="1 image has no row"):
            load(tmp_path, unlabelled="refuse")

    def test_runs_are_column_by_column_from_one(self) -> None:
        mask = decode(rle_of_row("1 2 25 24", SIZE_HW, "row"))
        assert mask[:2, 0].all()
        assert mask[:, 1].all()
        assert mask.sum() == 26

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1", "pairs"),
            ("1 2 3", "pairs"),
            ("0 5", "before pixel 1"),
            ("5 0", "no pixel"),
            ("1 99999", "24x36"),
            ("1 5 3 5", "overlap"),
            ("1.0 5", "whole"),
            ("-3 5", "whole"),
            ("a b", "whole"),
            ("1 99999999999999999999", "whole"),
            ("1 5 ½ 5", "whole"),
            ("٣ 5", "whole"),
        ],
    )
    def test_bad_runs_are_one_line(self, tmp_path: Path, text: str, words: str) -> None:
        severstal_set(tmp_path)
        write(tmp_path / "train.csv", f"ImageId,ClassId,EncodedPixels\ns0.png,1,{runs(box(1, 1))}\ns1.png,1,{text}\n")
        with pytest.raises(AnnotationError, match=rf"row 3: .*{words}"):
            load(tmp_path)
        assert len(load(tmp_path, skip_bad=True).images) == 1

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ("s9.png,1,1 2", "no image file 's9.png'"),
            ("s0.png,,1 2", "no class"),
            (",1,1 2", "names no image"),
            ("s0.png,1", "row 2: 2 cells"),
        ],
    )
    def test_bad_rows_are_one_line(self, tmp_path: Path, rows: str, words: str) -> None:
        severstal_set(tmp_path)
        write(tmp_path / "train.csv", f"ImageId,ClassId,EncodedPixels\n{rows}\n")
        with pytest.raises(InputError, match=words):
            load(tmp_path)
