"""A file is decoded once until it changes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.errors import ImageError
from defectory.images import facts
from defectory.images.decode import decode
from defectory.images.facts import image_size_hw, measure_value_range, remarks_of
from defectory.images.valuerange import ValueRange

from .samples import SIZE_HW, colour, file_of, grey, written


def test_a_file_is_decoded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.png", file_of(grey().astype(np.uint16) * 16))
    decoded: list[Path] = []

    def counted(file: Path) -> Any:
        decoded.append(file)
        return decode(file)

    monkeypatch.setattr(facts, "decode", counted)
    monkeypatch.setattr(facts, "_SETTLED_S", 0.0)
    time.sleep(0.02)
    assert image_size_hw(path) == SIZE_HW
    assert measure_value_range([path])[0] == ValueRange(low=0, high=4095)
    assert remarks_of(path) == ()
    assert len(decoded) == 1
    time.sleep(0.02)
    written(path, file_of(Image.new("L", (9, 5))))
    assert image_size_hw(path) == (5, 9)


def test_a_fresh_file_is_looked_at_each_time(tmp_path: Path) -> None:
    whole = file_of(colour())
    path = written(tmp_path / "a.png", whole)
    assert image_size_hw(path) == SIZE_HW
    half = whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2)
    written(path, half)
    with pytest.raises(ImageError, match="damaged or truncated"):
        image_size_hw(path)
