from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from defectory.artifacts.annotation import Category
from defectory.errors import ConfigError, WeightsError
from defectory.events import finish
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.predict import predict_images
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.to_onnx import require_exportable
from defectory.segmentation.training import load_segmenter, train_segmenter

CLASSES = (Category(id=1, name="crack"), Category(id=2, name="pit"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mask2Former of 80 classes, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=6,
        train_num_points=64,
        num_labels=80,
    )
    out = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(out)
    return out


def test_weights_start_all_but_the_class_layer(folder: Path) -> None:
    model, built = build_segmenter("mask2former", Build(num_classes=2, weights=folder), seed=3)
    stored = Mask2FormerForUniversalSegmentation.from_pretrained(folder, local_files_only=True).state_dict()
    new = built["weights"]["new_layers"]
    assert new
    assert all(name.startswith(("class_predictor.", "criterion.")) for name in new)
    own = model.state_dict()
    assert all(torch.equal(own[f"net.{name}"], value) for name, value in stored.items() if name not in new)
    assert own["net.class_predictor.weight"].shape[0] == 3, "two classes, and no object"
    json.dumps(built)


def test_it_trains_is_saved_and_predicts_the_same(
    folder: Path, make_tiles: Callable[..., list[SegmentationImage]], tmp_path: Path
) -> None:
    config = SegmentationConfig(
        model="mask2former", num_steps=3, batch_size=3, learning_rate=1e-4, validate_every=3, mixed_precision="auto"
    )
    images = {"real": make_tiles("real", 4), "defect_free": make_tiles("free", 2, seed=9, with_defect=False)}
    trained = finish(
        train_segmenter(
            arm="real",
            images=images,
            validate=lambda _: 0.0,
            categories=CLASSES,
            sizing=Sizing(scale=1.0, input_px=64),
            config=config,
            seed=0,
            out=tmp_path,
            weights=folder,
        )
    )
    assert len(trained.losses) == 3
    one, two = (load_segmenter(tmp_path)[0] for _ in range(2))
    image = [torch.rand(3, 45, 70)]
    with torch.no_grad():
        found, again = one(image)[0], two(image)[0]
    assert found["masks"].shape[1:] == (1, 45, 70)
    assert found["boxes"].shape == (len(found["scores"]), 4)
    assert torch.equal(found["scores"], again["scores"])
    assert all(found["scores"].diff() <= 0)
    assert set(found["labels"].tolist()) <= {1, 2}
    list(predict_images(one, [(1, images["real"][0].image)], scale=1.0))


def test_images_without_defects_and_of_different_sizes_train(folder: Path) -> None:
    model, _ = build_segmenter("mask2former", Build(num_classes=2, weights=folder), seed=0)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    sizes = ((48, 64), (40, 52))
    targets = [{**none, "masks": torch.zeros(0, *size, dtype=torch.uint8)} for size in sizes]
    losses = model.train()([torch.rand(3, *size) for size in sizes], targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_it_learns_where_the_defect_is(folder: Path) -> None:
    model, _ = build_segmenter("mask2former", Build(num_classes=1, weights=folder), seed=0)
    image, mask = torch.full((3, 64, 96), 0.3), torch.zeros(1, 64, 96, dtype=torch.uint8)
    image[:, 16:48, 32:72], mask[:, 16:48, 32:72] = 0.9, 1
    target = {"boxes": torch.tensor([[32.0, 16, 72, 48]]), "labels": torch.tensor([1]), "masks": mask}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(model.train()([image], [target]).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        best = {name: value[0] for name, value in model.eval()([image])[0].items()}
    found = best["masks"][0] >= 0.5
    assert (found & mask[0].bool()).sum() / (found | mask[0].bool()).sum() > 0.6
    assert best["boxes"].tolist() == pytest.approx([32, 16, 72, 48], abs=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pytorch_model\.bin is a pickle"),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "config.json").write_text('{"model_type": "detr"}'), r"'detr', not 'mask2former'"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "mask2former", "backbone": "swin"}'),
            "a backbone that would be downloaded",
        ),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "model.safetensors").write_bytes(b"1"), r"model\.safetensors: cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    change: Callable[[Path], object], message: str, folder: Path, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        build_segmenter("mask2former", Build(num_classes=2, weights=tmp_path), seed=0)
    assert "\n" not in str(caught.value)


def test_a_name_is_not_looked_up_on_the_network() -> None:
    with pytest.raises(WeightsError, match="names are not looked up on the network"):
        build_segmenter("mask2former", Build(num_classes=2, weights=Path("facebook/mask2former-swin-tiny")), seed=0)
    with pytest.raises(WeightsError, match=r"segmentation\.weights: is not set"):
        build_segmenter("mask2former", Build(num_classes=2), seed=0)


def test_it_is_not_written_as_onnx() -> None:
    with pytest.raises(ConfigError, match="family mask2former: cannot be written as ONNX"):
        require_exportable("mask2former")
