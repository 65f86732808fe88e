"""Time of a training step of the light families, beside the same with the layers of timm and torchvision.

All take turns on the same images in one process, in the precision of a run and in processor time; the fastest of the
rounds counts.

Run: `OMP_NUM_THREADS=1 python bench/segmenter_step.py`. Prints rows of a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.nn.functional import interpolate
from torchvision.ops import MultiScaleRoIAlign

from defectory.engine.precision import autocast
from defectory.segmentation.models import efficientnet, unet
from defectory.segmentation.models.family import Build, build_segmenter

FAMILIES = ("light", "efficientnet_lite0", "unet")
OF_OTHERS = ", their layers"
SHAPES = ((8, 128, 128), (8, 160, 120), (8, 256, 256))
"""Images of a batch, their height and width."""


class TimmLayers(nn.Module):
    """The encoder as timm makes it, with its frozen batch norms, in the plain layout."""

    def __init__(self, like: nn.Module, maps: Sequence[int]) -> None:
        super().__init__()
        encoder = timm.create_model(efficientnet.NAME, pretrained=False, features_only=True, out_indices=tuple(maps))
        self.body = freeze_batch_norm_2d(encoder)
        self.body.load_state_dict(like.state_dict())
        for name, value in self.body.named_parameters():
            value.requires_grad_(not name.startswith(efficientnet.FROZEN))

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.body(pixels.contiguous())


class PlainDecoder(nn.Module):
    """The decoder of the U-Net with joined maps, in the plain layout."""

    def __init__(self, like: unet.Decoder) -> None:
        super().__init__()
        self.blocks = like.blocks

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        *skips, above = maps
        found: list[torch.Tensor] = []
        for skip, block in zip(reversed(skips), reversed(self.blocks), strict=True):
            enlarged = interpolate(above, skip.shape[-2:], mode="bilinear", align_corners=False)
            above = block(torch.cat([enlarged, skip], dim=1))
            found.insert(0, above)
        return found


def torchvisions(pool: Any) -> MultiScaleRoIAlign:
    """Return torchvision's pooling of boxes with the settings of ours."""
    levels = {"canonical_scale": pool.canonical_scale, "canonical_level": pool.canonical_level}
    return MultiScaleRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio, **levels)


def batch_of(shape: tuple[int, int, int]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Make images with two defects each, but for every seventh, which has none."""
    count, height, width = shape
    generator = torch.Generator().manual_seed(0)
    targets: list[dict[str, torch.Tensor]] = []
    for index in range(count):
        masks = torch.zeros(0 if index % 7 == 6 else 2, height, width, dtype=torch.uint8)
        masks[0:1, 20:50, 30:44], masks[1:2, 70:80, 60:110] = 1, 1
        boxes = torch.tensor([[30.0, 20, 44, 50], [60, 70, 110, 80]])[: len(masks)]
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2])[: len(masks)], "masks": masks})
    return [torch.rand(3, height, width, generator=generator) for _ in range(count)], targets


def step_s(model: nn.Module, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> float:
    """Take processor time of losses and gradients."""
    begun = time.process_time()
    with autocast("auto", "cpu"):
        losses = model.train()(images, targets)
    sum(value.float() for value in losses.values()).backward()
    model.zero_grad()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    models = {
        f"{family}{whose}": build_segmenter(family, Build(num_classes=2), seed=0)[0]
        for family in FAMILIES
        for whose in ("", OF_OTHERS)
    }
    for family in FAMILIES:
        plain: Any = models[family + OF_OTHERS]
        if not hasattr(plain, "roi_heads"):
            continue
        for name in ("box_roi_pool", "mask_roi_pool"):
            setattr(plain.roi_heads, name, torchvisions(getattr(plain.roi_heads, name)))
    backbone: Any = models["efficientnet_lite0" + OF_OTHERS].backbone
    backbone.encoder = TimmLayers(backbone.encoder, efficientnet.MAPS)
    net: Any = models["unet" + OF_OTHERS]
    net.encoder, net.decoder = TimmLayers(net.encoder, range(5)), PlainDecoder(net.decoder)
    print(
        "| images | "
        + " | ".join(f"{name}, s" for name in models)
        + " | "
        + " | ".join(f"ratio, {f}" for f in FAMILIES)
        + " |"
    )
    print("|---|" + "---|" * (len(models) + len(FAMILIES)))
    for shape in SHAPES:
        best = {name: float("inf") for name in models}
        for turn in range(rounds + 1):
            for name, model in models.items():
                taken = step_s(model, *batch_of(shape))
                best[name] = min(best[name], taken) if turn else best[name]
        told = [f"{value:.3f}" for value in best.values()]
        ratios = [f"{best[family + OF_OTHERS] / best[family]:.2f}" for family in FAMILIES]
        print(f"| {' x '.join(map(str, shape))} | {' | '.join([*told, *ratios])} |", flush=True)


if __name__ == "__main__":
    main()
