"""The ONNX tests need the extra `onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from defectory.errors import ConfigError, StageError
from defectory.segmentation import to_onnx
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.models.registry import SEGMENTERS
from defectory.segmentation.to_onnx import _PlainGroupNorm, compare, require_exportable, write_onnx


def image(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("family", [pytest.param("light", marks=pytest.mark.long), "efficientnet_lite0"])
def test_the_file_finds_what_the_segmenter_finds_on_images_of_any_size(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    segmenter = build_segmenter(family, Build(num_classes=2), seed=0)[0].eval()
    spotted = np.full((72, 104, 3), 110, np.uint8)
    spotted[20:44, 30:70] = 20
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    write_onnx(segmenter, tmp_path / "a.onnx", example=spotted)
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    found = compare(segmenter, tmp_path / "a.onnx", [spotted, image(51, 130), spotted[:, :60]])
    assert found.num_images == 3
    assert found.num_detections > 0
    assert found.mask_iou > 0.999
    blank = [np.full((64, 80, 3), value, np.uint8) for value in (0, 128)]
    with torch.no_grad():
        assert any(len(segmenter([to_onnx.as_input(one)])[0]["scores"]) == 0 for one in blank), (
            "nothing is found on one"
        )
    compare(segmenter, tmp_path / "a.onnx", blank)
    with torch.no_grad():
        segmenter.roi_heads.box_predictor.cls_score.bias[1] += 3.0  # type: ignore[union-attr]
    with pytest.raises(StageError, match=r"a\.onnx: .*nothing was written"):
        compare(segmenter, tmp_path / "a.onnx", [spotted])


def test_a_family_that_finds_pixels_gives_their_chances_on_images_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    segmenter: Any = build_segmenter("unet", Build(num_classes=2, init="random", mirrored=True), seed=0)[0].eval()
    write_onnx(segmenter, tmp_path / "a.onnx", example=image(72, 104))
    found = compare(segmenter, tmp_path / "a.onnx", [image(72, 104), image(51, 130), image(33, 20)])
    assert found.num_images == 3
    assert found.num_detections > 0
    assert found.score < 1e-4
    pixels = to_onnx.as_input(image(51, 130)).numpy()
    (chances,) = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(None, {"image": pixels})
    assert chances.shape == (2, 51, 130)
    assert to_onnx.outputs_of("unet") == ("chances",)
    with torch.no_grad():
        segmenter.classify.bias[1] += 1.0
    with pytest.raises(StageError, match=r"a\.onnx: chances differ by .*nothing was written"):
        compare(segmenter, tmp_path / "a.onnx", [image(72, 104)])


def test_a_plain_group_norm_is_a_group_norm_and_takes_no_boxes_at_all() -> None:
    own = nn.GroupNorm(4, 8)
    with torch.no_grad():
        own.weight.uniform_()
        own.bias.uniform_()
    x = torch.randn(3, 8, 5, 7) * 4 + 2
    assert torch.allclose(_PlainGroupNorm(own)(x), own(x), atol=1e-5)
    assert _PlainGroupNorm(own)(x[:0]).shape == (0, 8, 5, 7)


def test_a_missing_package_and_a_family_that_cannot_be_written_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the packages onnx and onnxruntime.*pip install 'defectory\[onnx\]'"):
        require_exportable("light")
    with (
        SEGMENTERS.registered("mine", object()),
        pytest.raises(ConfigError, match="family mine: cannot be written as ONNX"),
    ):
        require_exportable("mine")
