from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory import StageEnded, finish, list_bases, verify_base
from defectory.api.bases import draw_world, pretrain_base, score_base, teach_base
from defectory.errors import ConfigError, OutputError, WeightsError
from defectory.images.load import load_rgb
from defectory.procedural import gallery
from defectory.tools import pretrain


def test_a_base_is_verified_by_name_or_folder(tiny_base_folder: Path) -> None:
    assert "embedded" in [base.name for base in list_bases()]
    folder, facts = verify_base(tiny_base_folder)
    assert (folder, facts.tile_px, facts.prediction_type) == (tiny_base_folder, 32, "v_prediction")
    assert verify_base()[0] == verify_base("embedded")[0]
    with pytest.raises(WeightsError, match="neither a folder nor a known base"):
        verify_base("nowhere")


@pytest.mark.parametrize(
    "make",
    [
        lambda out, **options: teach_base("dent", out=out, **options),
        lambda out, **options: score_base(out=out, **options),
        lambda out, **options: pretrain_base(out=out, **options),
    ],
)
def test_work_on_a_base_refuses_bad_settings_and_a_users_folder_at_once(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("years of work")
    with pytest.raises(OutputError, match="mine"):
        make(tmp_path / "mine")
    with pytest.raises(ConfigError, match="no such setting"):
        make(tmp_path / "new", overrides={"paint": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    make(tmp_path / "new", overrides={"seed": 1})  # right, and nothing is done before events are read
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_base_is_only_read(tiny_base_folder: Path) -> None:
    inside = tiny_base_folder / "inside"
    with pytest.raises(OutputError, match="only read"):
        teach_base("dent", base=tiny_base_folder, out=inside)
    with pytest.raises(OutputError, match="only read"):
        score_base(tiny_base_folder, out=inside)
    assert not inside.exists()


def test_teaching_a_base_returns_the_folder_of_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = StageEnded(stage="teach", seconds=1.0, skipped=False, summary="")

    def teach(_config: object, *, base: Path, out: Path, work: Path) -> Iterator[StageEnded]:
        assert (base, out.name) == (verify_base()[0], "taught")
        work.mkdir()
        yield told

    monkeypatch.setattr(pretrain, "run_teach", teach)
    for given, expected in ((None, tmp_path / "taught.work"), (tmp_path / "mine", tmp_path / "mine")):
        work = teach_base("dent", out=tmp_path / "taught", work=given)
        assert next(work) == told
        assert finish(work) == expected
        assert expected.is_dir()


def test_sheets_of_the_world_replace_those_drawn_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = np.full((16, 24, 3), 90, np.uint8)
    monkeypatch.setattr(gallery, "world_sheet", lambda _: sheet)
    monkeypatch.setattr(gallery, "borescope_sheet", lambda: sheet)
    for _ in range(2):
        files = draw_world(tmp_path / "world")
        assert [file.stem for file in files] == [*gallery.SHEETS, "borescope"]
        assert all(load_rgb(file).shape == sheet.shape for file in files)
