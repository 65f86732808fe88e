"""What the fuzzer found, one test for each kind."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.artifacts.plan import Check
from defectory.config.resolve import read_project_file
from defectory.errors import AnnotationError, ConfigError, ImageError, InputError
from defectory.formats.colours import value_names_of
from defectory.images.load import load_image
from defectory.textfile import read_text_file

from .sets import defectory, images


def test_a_png_chunk_that_says_it_has_4_gb_is_refused_at_once(tmp_path: Path) -> None:
    data = images()["deep_rgb.png"]
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + struct.pack(">I", 0xFF000000) + data[at + 4 :])
    began = time.process_time()
    with pytest.raises(ImageError, match="damaged or truncated"):
        load_image(tmp_path / "a.png")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("form", ["x{} = 1", "[x{}]\ny = 1", "x = {{a{} = 1}}"])
def test_a_key_of_20000_parts_is_refused_at_once(tmp_path: Path, form: str) -> None:
    (tmp_path / "project.toml").write_text(form.format(".a" * 20_000))
    began = time.process_time()
    with pytest.raises(ConfigError, match="more than 1000 dots"):
        read_project_file(tmp_path / "project.toml")
    assert time.process_time() - began < 1


def test_a_device_is_no_text_file() -> None:
    with pytest.raises(AnnotationError, match="is a device"):
        read_text_file(Path("/dev/zero"))


def test_a_folder_and_a_number_that_is_none_are_no_value(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Check.load(tmp_path)
    for number in ("NaN", "Infinity", "1e999"):
        text = json.dumps({"name": "blur", "value": 0.5, "limit": 1.0}).replace("0.5", number)
        (tmp_path / "check.json").write_text(text)
        with pytest.raises(InputError, match="not a valid Check"):
            Check.load(tmp_path / "check.json")


def test_a_long_class_name_is_shortened_in_messages() -> None:
    name = "scratch" * 400
    with pytest.raises(AnnotationError) as caught:
        value_names_of([name, name], "classes.txt")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda d: d["images"][0].update(file_name="a\0.png"), "file name"),
        (lambda d: d["images"][0].update(file_name="../../x.png"), "file name"),
        (lambda d: d["images"][0].update(file_name="/etc/hostname"), "file name"),
        (lambda d: d["images"][1].update(id=1), "two images have one id"),
        (lambda d: d["categories"][0].update(id=7), "category ids"),
        (lambda d: d["images"][0]["instances"][0].update(category_id=9), "class that is not listed"),
    ],
)
def test_an_edited_data_set_that_does_not_hold_together_is_refused(
    tmp_path: Path, edit: Callable[[Any], object], told: str
) -> None:
    path = defectory(tmp_path) / MANIFEST
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"not a valid Dataset .*{told}"):
        Dataset.load(path)
