from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.engine.backbones.verify import verify
from defectory.files import digest_folder
from defectory.pretraining.config import PretrainConfig, StageConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.run import pretrain
from defectory.pretraining.vae import draw_crops, pixel_weight, reconstruction_loss


def tiny_config(**changes: Any) -> PretrainConfig:
    def stage(num_steps: int) -> StageConfig:
        return StageConfig(num_steps=num_steps, batch_size=2, warmup_steps=1, checkpoint_every=2)

    values: dict[str, Any] = {
        "tile_px": 32,
        "num_images": 12,
        "num_held_out": 2,
        "num_workers": 1,
        "latent_channels": 4,
        "vae_channels": (8, 8, 8),
        "unet_channels": (16, 16, 32),
        "text_width": 64,
        "text_layers": 1,
        "text_length": 16,
        "vocabulary_size": 560,
        "norm_groups": 4,
        "vae_crop_px": 16,
        "crop_px": 16,
        "vae": stage(3),
        "diffusion": stage(3),
        "control": stage(2),
        "encoder": stage(2),
    }
    return PretrainConfig(**(values | changes))


def geometry_of(image: np.ndarray, _mask: np.ndarray) -> np.ndarray:
    return (image // 6).astype(np.uint8)


def run(config: PretrainConfig, folder: Path, *, stop_after: int | None = None) -> None:
    events = pretrain(
        config, work=folder / "work", base_out=folder / "base", encoder_out=folder / "encoder", geometry_of=geometry_of
    )
    for count, _ in enumerate(events, start=1):
        if count == stop_after:
            events.close()  # type: ignore[attr-defined]
            return


@pytest.mark.long
def test_pretraining_goes_on_from_a_base_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    run(tiny_config(), tmp_path / "whole")
    base = tmp_path / "whole" / "base"
    verify(base)

    further = tiny_config(start=str(base), vae=StageConfig(num_steps=1, batch_size=2, warmup_steps=0))
    run(further, tmp_path / "further")
    for name in ("vocab.json", "tokenizer.json"):
        if (base / "tokenizer" / name).is_file():
            assert (tmp_path / "further" / "base" / "tokenizer" / name).read_bytes() == (
                base / "tokenizer" / name
            ).read_bytes()
    assert digest_folder(tmp_path / "further" / "base") != digest_folder(base)
    assert digest_folder(tmp_path / "further" / "base" / "vae") == digest_folder(base / "vae")


def test_reconstruction_loss_in_closed_form() -> None:
    target, even = torch.zeros(1, 3, 6, 8), torch.ones(1, 1, 6, 8)
    grey = target + 0.1
    torch.testing.assert_close(reconstruction_loss(grey, target, even), torch.tensor(0.1 + 2 * 0.01))
    tinted = target.clone()
    tinted[:, 0], tinted[:, 1], tinted[:, 2] = 0.1, -0.05, -0.05
    error = tinted.abs().mean()
    expected = error + 2 * tinted.square().mean() + error
    torch.testing.assert_close(reconstruction_loss(tinted, target, even), expected)


def test_errors_at_a_defect_weigh_more_than_elsewhere_and_the_mean_weight_is_one() -> None:
    class_maps = np.zeros((1, 12, 16), np.uint8)
    class_maps[0, 4, 6:9] = 3
    weight = pixel_weight(class_maps, 4.0)
    near = np.zeros((12, 16), bool)
    near[2:7, 4:11] = True  # the defect and two pixels around it
    mean = (4 * near.sum() + (~near).sum()) / near.size
    np.testing.assert_allclose(weight[0, 0].numpy(), np.where(near, 4.0, 1.0) / mean, rtol=1e-6)
    assert (pixel_weight(class_maps, 1.0) == 1).all()

    image = torch.zeros(1, 3, 12, 16)
    at_defect, elsewhere = image.clone(), image.clone()
    at_defect[..., 4, 7], elsewhere[..., 9, 12] = 0.5, 0.5
    assert float(reconstruction_loss(at_defect, image, weight)) > 3 * float(
        reconstruction_loss(elsewhere, image, weight)
    )


def test_every_second_crop_holds_a_defect_where_defects_weigh_more() -> None:
    class_maps = np.zeros((12, 48, 48), np.uint8)
    class_maps[1::3, 40, 45] = 2  # in a corner: few crops at random hold it
    corpus = Corpus(
        images=np.zeros((12, 48, 48, 3), np.uint8),
        class_maps=class_maps,
        captions=[""] * 12,
        tones=[""] * 12,
        materials=[""] * 12,
        defect_words=[()] * 12,
    )
    stage = StageConfig(num_steps=1, batch_size=6)
    for seed in range(8):
        weighted = tiny_config(tile_px=48, vae=stage, vae_defect_weight=4.0)
        crops = draw_crops(corpus, weighted, torch.Generator().manual_seed(seed))
        assert all(corpus.class_maps[at].shape == (16, 16) and at[0] < 10 for at in crops)
        assert all(corpus.class_maps[at].any() for at in crops[::2])
        again = draw_crops(corpus, weighted, torch.Generator().manual_seed(seed))
        assert again == crops
    unweighted = [
        draw_crops(
            corpus, tiny_config(tile_px=48, vae=stage, vae_defect_weight=1.0), torch.Generator().manual_seed(seed)
        )
        for seed in range(8)
    ]
    assert sum(bool(corpus.class_maps[at].any()) for crops in unweighted for at in crops[::2]) < 12
