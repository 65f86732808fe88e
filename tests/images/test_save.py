"""Pictures for people say who made them, and data do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from defectory.images.load import load_rgb
from defectory.images.save import encode_png, save_jpeg, save_png

from .samples import colour, file_of


def test_pictures_for_people_say_who_made_them_and_data_do_not(tmp_path: Path) -> None:
    save_png(tmp_path / "data.png", colour())
    save_png(tmp_path / "sheet.png", colour(), software=True, durable=False)
    save_jpeg(tmp_path / "sheet.jpg", colour(), software=True)
    assert (tmp_path / "data.png").read_bytes() == encode_png(colour()) == file_of(colour(), compress_level=3)
    np.testing.assert_array_equal(load_rgb(tmp_path / "sheet.png"), colour())
    assert Image.open(tmp_path / "sheet.png").info["Software"] == "defectory"
    assert b"Software: defectory" in (tmp_path / "sheet.jpg").read_bytes()
