from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from defectory.artifacts.scores import BaseScores
from defectory.errors import ConfigError, StageError
from defectory.events import Progress
from defectory.images.load import load_rgb
from defectory.pretraining.config import ScoreConfig, StageConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.score import GRID_CAPTIONS, Named, accuracy, name_images
from defectory.procedural.defects import DEFECT_WORDS
from defectory.procedural.materials import MATERIALS
from defectory.tools.pretrain import run_score, score_config


class Reads(torch.nn.Module):
    """Names the material by the first pixel's red and the defect by its green, as if it had seen them."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        value = ((pixels[:, :2, 0, 0] + 1) * 127.5).round().long()
        return torch.eye(5)[value[:, 0]], torch.eye(4)[value[:, 1]], pixels


def image(red: int, green: int) -> np.ndarray:
    made = np.zeros((8, 12, 3), np.uint8)
    made[0, 0] = (red, green, 0)
    return made


def test_accuracy_is_the_share_of_images_that_are_named_right() -> None:
    named = [Named(material=i % 5, defect=i % 4) for i in range(40)]
    images = [
        image(n.material if i < 30 else (n.material + 1) % 5, n.defect if i < 10 else (n.defect + 1) % 4)
        for i, n in enumerate(named)
    ]
    judge: torch.nn.Module = Reads()
    assert accuracy(judge, images, named) == (pytest.approx(0.75), pytest.approx(0.25))  # pyright: ignore[reportArgumentType]


def test_images_with_two_kinds_of_defect_have_no_name() -> None:
    blank = np.zeros((4, 8, 12), np.uint8)
    corpus = Corpus(
        images=np.zeros((4, 8, 12, 3), np.uint8),
        class_maps=blank,
        captions=[""] * 4,
        tones=[""] * 4,
        materials=["b", "a", "b", "a"],
        defect_words=[(), ("pit", "pit"), ("pit", "crack"), ("crack",)],
    )
    assert name_images(corpus, ["a", "b"], ["crack", "pit"]) == [
        Named(material=1, defect=0),
        Named(material=0, defect=2),
        None,
        Named(material=0, defect=1),
    ]


def test_the_grids_captions_are_made_of_the_worlds_words() -> None:
    assert len(GRID_CAPTIONS) == 16
    for caption in GRID_CAPTIONS:
        assert sum(material in caption for material in MATERIALS) == 1
        assert (
            caption.endswith("without defect") or sum(caption.endswith(f"with a {word}") for word in DEFECT_WORDS) == 1
        )


def test_a_base_is_scored_to_the_end_and_the_classifier_is_not_trained_twice(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    config = ScoreConfig(
        tile_px=32,
        num_images=24,
        num_held_out=16,
        num_samples=8,
        num_workers=1,
        num_inference_steps=1,
        guidance_scale=1.5,
        judge=StageConfig(num_steps=3, batch_size=4, checkpoint_every=1),
    )
    list(islice(run_score(config, base=tiny_base_folder, out=tmp_path), 3))  # the images and two steps
    events = list(run_score(config, base=tiny_base_folder, out=tmp_path))
    assert [e.done for e in events if isinstance(e, Progress) and e.stage == "judge"] == [3]
    scores = BaseScores.load(tmp_path / "scores.json")
    assert scores.num_samples == 8
    assert all(
        0 <= getattr(scores, f"{kind}_accuracy{of}") <= 1
        for kind in ("material", "defect")
        for of in ("", "_of_samples")
    )
    assert np.isfinite([scores.kid, scores.kid_floor]).all()
    assert load_rgb(tmp_path / "samples.png").shape[0] > 8 * 32


def test_a_folder_with_another_classifier_is_refused(tiny_base_folder: Path, tmp_path: Path) -> None:
    config = ScoreConfig(tile_px=32, num_images=8, num_held_out=8, num_workers=1)
    next(run_score(config, base=tiny_base_folder, out=tmp_path))
    with pytest.raises(StageError, match="another recipe"):
        next(run_score(config.model_copy(update={"seed": 8}), base=tiny_base_folder, out=tmp_path))
    next(run_score(config.model_copy(update={"guidance_scale": 1.0}), base=tiny_base_folder, out=tmp_path))


def test_an_unknown_setting_is_named() -> None:
    assert score_config(["num_samples=40", "judge.num_steps=9"]).judge.num_steps == 9
    with pytest.raises(ConfigError, match="no such setting"):
        score_config(["num_sample=40"])
