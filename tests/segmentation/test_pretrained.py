"""Anchors that follow the data, and weights that people have on their disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from defectory.errors import ConfigError, WeightsError
from defectory.segmentation.models.anchors import anchors_for
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.models.light_heads import ANCHORS_PX
from defectory.segmentation.sizing import OWN_BOXES, BoxStatistics

BOXES = BoxStatistics(small_px=6, large_px=400, elongation=5)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files in the layout of torchvision's COCO weights (91 classes), with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, Path] = {}
    torch.manual_seed(0)
    for name, make in (("resnet50", maskrcnn_resnet50_fpn), ("resnet50_v2", maskrcnn_resnet50_fpn_v2)):
        model = make(weights=None, weights_backbone=None)
        made[name] = folder / f"{name}.pth"
        torch.save(model.state_dict(), made[name])
    return made


def test_anchors_are_spread_over_the_boxes_and_never_lose_the_familys_own_range() -> None:
    own = anchors_for(None, ANCHORS_PX, own_boxes=OWN_BOXES)
    within = BoxStatistics(small_px=20, large_px=60, elongation=2)
    assert anchors_for(within, ANCHORS_PX, own_boxes=OWN_BOXES).sizes == own.sizes == ANCHORS_PX
    wide = anchors_for(BOXES, ANCHORS_PX, own_boxes=OWN_BOXES)
    sizes = [size for level in wide.sizes for size in level]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (6, 400)
    assert wide.aspect_ratios[0] == pytest.approx((0.2, 1.0, 5.0))
    assert wide.num_anchors_per_location() == own.num_anchors_per_location()


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet50_v2", marks=pytest.mark.long)])
def test_coco_weights_start_all_but_the_layers_of_the_classes(name: str, coco: dict[str, Path]) -> None:
    model, built = build_segmenter(name, Build(num_classes=2, boxes=BOXES, weights=coco[name]), seed=0)
    stored, state = torch.load(coco[name], weights_only=True), model.state_dict()
    new = set(built["weights"]["new_layers"])
    assert new
    assert all(layer.startswith("roi_heads.") for layer in new)
    assert all(torch.equal(state[key], stored[key]) for key in state if key not in new)
    assert state["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    again, kept = build_segmenter(name, Build(num_classes=2, built=built), seed=1)
    again.load_state_dict(state)
    assert kept["weights"]["sha256"] == built["weights"]["sha256"]
    with torch.no_grad():
        image = [torch.rand(3, 64, 96)]
        one, two = model.eval()(image)[0], again.eval()(image)[0]
    assert torch.equal(one["scores"], two["scores"])


def test_weights_in_torchs_own_folder_are_found(
    coco: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert build_segmenter("resnet50", Build(num_classes=1), seed=0)[1]["weights"] is None
    (tmp_path / "checkpoints").mkdir()
    place = tmp_path / "checkpoints" / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    place.write_bytes(coco["resnet50"].read_bytes())
    assert build_segmenter("resnet50", Build(num_classes=1), seed=0)[1]["weights"]["file"] == place.name


def test_weights_with_as_many_classes_are_used_whole_also_as_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "own.safetensors"
    save_file(dict(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()), path)
    model, built = build_segmenter("resnet50", Build(num_classes=2, weights=path), seed=0)
    assert built["weights"]["new_layers"] == []
    key = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    assert torch.equal(model.state_dict()[key], load_file(path)[key])


class NotWeights:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run by a pickle",)


def test_what_cannot_be_used_is_told_in_one_line(
    coco: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(name: str, path: Path, kind: type[Exception] = WeightsError) -> str:
        with pytest.raises(kind) as caught:
            build_segmenter(name, Build(num_classes=2, weights=path), seed=0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in told("resnet50", tmp_path / "none.pth")
    assert "is not of the family resnet50:" in told("resnet50", coco["resnet50_v2"])
    assert "is not of the family resnet50_v2:" in told("resnet50_v2", coco["resnet50"])
    (tmp_path / "half.pth").write_bytes(coco["resnet50"].read_bytes()[:20_000])
    assert "cannot be read as weights" in told("resnet50", tmp_path / "half.pth")
    (tmp_path / "half.safetensors").write_bytes(b"\x08")
    assert "cannot be read as weights" in told("resnet50", tmp_path / "half.safetensors")
    torch.save(NotWeights(), tmp_path / "code.pth")
    assert "half" not in (found := told("resnet50", tmp_path / "code.pth"))
    assert "refused" in found
    assert "run by a pickle" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in told("resnet50", tmp_path / "list.pth")
    assert "leave the setting out" in told("light", coco["resnet50"], ConfigError)
