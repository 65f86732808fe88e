"""Train torchvision's Mask R-CNN for a few steps on an export, from its COCO file and its images alone.

    python bench/train_export.py exports/coco

The steps are those of torchvision's detection references: `CocoDetection`, masks from `segmentation`, crowds and empty
boxes left out, a warm-up of the learning rate, the sum of the model's losses. Nothing of defectory is imported. Weights
are random.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.transforms.functional import to_tensor

Target = dict[str, Tensor]


def masks_of(annotations: list[dict[str, Any]], height: int, width: int) -> Tensor:
    """Return masks uint8 [N,H,W] of polygons or run lengths, as `frPyObjects` takes them."""
    masks: list[Tensor] = []
    for annotation in annotations:
        found = torch.as_tensor(coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], height, width)))
        masks.append(found.any(dim=2) if found.ndim == 3 else found)
    return torch.stack(masks).to(torch.uint8) if masks else torch.zeros((0, height, width), dtype=torch.uint8)


class Samples(Dataset[tuple[Tensor, Target]]):
    """Images and targets of a COCO file, those without instances included."""

    def __init__(self, images: Path, annotations: Path) -> None:
        self.coco = CocoDetection(str(images), str(annotations))

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, annotations = self.coco[index]
        width, height = image.size
        annotations = [annotation for annotation in annotations if annotation["iscrowd"] == 0]
        boxes = torch.as_tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        labels = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        return to_tensor(image.convert("RGB")), {
            "boxes": boxes[keep],
            "labels": labels[keep],
            "masks": masks_of(annotations, height, width)[keep],
        }


def collate(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    return [image for image, _ in batch], [target for _, target in batch]


def train(folder: Path, *, num_steps: int, size_px: int, batch_size: int) -> list[dict[str, float]]:
    torch.manual_seed(0)
    samples = Samples(folder / "images", folder / "annotations.json")
    num_classes = 1 + max(samples.coco.coco.cats)
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes, min_size=size_px, max_size=size_px
    ).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.005, momentum=0.9, weight_decay=5e-4
    )
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=max(1, num_steps - 1))
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(samples, batch_size=batch_size, shuffle=True, collate_fn=collate, generator=generator)
    told: list[dict[str, float]] = []
    while len(told) < num_steps:
        for images, targets in loader:
            losses: dict[str, Tensor] = model(images, targets)
            total = torch.stack(list(losses.values())).sum()
            told.append({"loss": total.item(), **{name: loss.item() for name, loss in losses.items()}})
            if not math.isfinite(told[-1]["loss"]):
                raise SystemExit(f"step {len(told)}: loss is {told[-1]['loss']}: {told[-1]}")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            warm_up.step()
            step = ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in told[-1].items())
            print(f"step {len(told)}: {sum(len(t['labels']) for t in targets)} instances, {step}", flush=True)
            if len(told) == num_steps:
                break
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="export in the format coco or coco-polygons")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    given = parser.parse_args()
    train(given.folder, num_steps=given.steps, size_px=given.size_px, batch_size=given.batch_size)


if __name__ == "__main__":
    main()
