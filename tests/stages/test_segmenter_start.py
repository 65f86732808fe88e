from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from defectory.engine.features.encoder import ConvEncoder, save_encoder
from defectory.events import Progress, StageEnded
from defectory.files import digest_folder
from defectory.pretraining.config import PretrainConfig
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.start import apply_start
from defectory.tools.segmenter_start import run_segmenter_start

RECIPE = PretrainConfig.model_validate(
    {
        "tile_px": 64,
        "num_images": 24,
        "num_held_out": 4,
        "num_workers": 1,
        "mixed_precision": "no",
        "segmenter": {"num_images": 20, "num_steps": 4, "batch_size": 2, "validate_every": 2, "checkpoint_every": 2},
    }
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of weights that no other one has."""
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    torch.manual_seed(5)
    save_encoder(ConvEncoder(), folder)
    return folder


def start(encoder: Path, folder: Path) -> Any:
    return run_segmenter_start(RECIPE, work=folder / "work", encoder=encoder, out=folder / "start")


def test_every_arm_can_begin_with_the_start_that_a_pretraining_makes(encoder: Path, tmp_path: Path) -> None:
    *steps, ended = list(start(encoder, tmp_path))
    assert [(e.done, e.total) for e in steps if isinstance(e, Progress)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert isinstance(ended, StageEnded)
    assert ended.summary.startswith("held-out segm mAP")
    model = build_segmenter("light", Build(num_classes=3, init="random"), seed=0)[0]
    apply_start(model, 3, tmp_path / "start")
    begun = build_segmenter("light", Build(num_classes=1, init="encoder", encoder=encoder), seed=RECIPE.seed)[
        0
    ].state_dict()
    made = load_file(tmp_path / "start" / "model.safetensors")
    name = "backbone.encoder.stem.0.weight"
    assert torch.allclose(made[name].float(), begun[name], atol=0.02), "it begins with the encoder that it is given"
    assert not torch.equal(made[name].float(), begun[name]), "and trains it"
    digest = digest_folder(tmp_path / "start")
    (again,) = start(encoder, tmp_path)
    assert again.summary == ended.summary, "nothing is trained twice"
    assert digest_folder(tmp_path / "start") == digest


def test_left_halfway_it_goes_on_and_ends_the_same(encoder: Path, tmp_path: Path) -> None:
    list(start(encoder, tmp_path / "whole"))
    left = start(encoder, tmp_path / "left")
    steps = (event for event in left if isinstance(event, Progress))
    assert [event.done for event in islice(steps, 3)] == [1, 2, 3]
    left.close()
    assert not (tmp_path / "left" / "start").exists()
    first, *_ = list(start(encoder, tmp_path / "left"))
    assert first.done == 4, "from the checkpoint that leaving wrote after three steps"
    assert digest_folder(tmp_path / "whole" / "start") == digest_folder(tmp_path / "left" / "start")
