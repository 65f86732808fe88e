"""Lets torchvision's Mask R-CNNs leave doubtful boxes and pixels out of their losses.

A target may hold `ignore` uint8 [H,W] (1 where the label is doubtful) and `is_doubtful` bool [N] beside its boxes. A
batch in which no target holds them takes torchvision's own path, so its losses are the same bit for bit.

- Region proposals: an anchor on a doubtful box, or whose centre lies mostly in ignored pixels, is no background.
- Boxes: a proposal matched to a doubtful box has no loss, nor has background that is mostly ignored.
- Masks: ignored pixels have no loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, project_masks_on_boxes
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from defectory.segmentation.models.pooling import QuickRoiAlign

Target = dict[str, Tensor]
MOSTLY = 0.5
"""A box is left out if a larger share of it is ignored."""
LEAST_OVERLAP = 1e-6


def heed_ignore(model: MaskRCNN) -> MaskRCNN:
    """Replace the heads of a model by ones that heed `ignore`, with the same layers and settings, and return it."""
    model.rpn = IgnoringRpn.like(model.rpn)
    model.roi_heads = IgnoringRoiHeads.like(model.roi_heads)
    return model


class IgnoringRpn(RegionProposalNetwork):
    """Proposes regions; anchors on what is doubtful are neither positive nor negative."""

    @classmethod
    def like(cls, rpn: Any) -> IgnoringRpn:
        """Return one with the layers and settings of another."""
        return cls(
            rpn.anchor_generator,
            rpn.head,
            fg_iou_thresh=rpn.proposal_matcher.high_threshold,
            bg_iou_thresh=rpn.proposal_matcher.low_threshold,
            batch_size_per_image=rpn.fg_bg_sampler.batch_size_per_image,
            positive_fraction=rpn.fg_bg_sampler.positive_fraction,
            pre_nms_top_n=rpn._pre_nms_top_n,
            post_nms_top_n=rpn._post_nms_top_n,
            nms_thresh=rpn.nms_thresh,
            score_thresh=rpn.score_thresh,
        )

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the label of each anchor (1 defect, 0 background, -1 neither) and the box that it is to find."""
        labels, boxes = super().assign_targets_to_anchors(anchors, [_certain(target) for target in targets])
        for own, anchor, target in zip(labels, anchors, targets, strict=True):
            if "ignore" in target:
                # an anchor of a certain box stays positive
                own[self._is_doubtful(anchor, target) & (own <= 0)] = -1.0
        return labels, boxes

    def _is_doubtful(self, anchors: Tensor, target: Target) -> Tensor:
        found = shares_of(target["ignore"], central(anchors)) > MOSTLY
        doubtful = target["boxes"][target["is_doubtful"]]
        if len(doubtful):
            overlap = box_iou(doubtful, anchors)
            # the best anchor of a small box may overlap it less
            least = overlap.amax(dim=1, keepdim=True).clamp(LEAST_OVERLAP, self.proposal_matcher.low_threshold)
            found = found | (overlap >= least).any(dim=0)
        return found

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and of boxes; 0 if every anchor is left out."""
        if all(bool((own < 0).all()) for own in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)


class IgnoringRoiHeads(RoIHeads):
    """Classifies and outlines proposals; what is doubtful has no loss."""

    @classmethod
    def like(cls, heads: Any) -> IgnoringRoiHeads:
        """Return one with the layers and settings of another."""
        return cls(
            QuickRoiAlign.like(heads.box_roi_pool),
            heads.box_head,
            heads.box_predictor,
            fg_iou_thresh=heads.proposal_matcher.high_threshold,
            bg_iou_thresh=heads.proposal_matcher.low_threshold,
            batch_size_per_image=heads.fg_bg_sampler.batch_size_per_image,
            positive_fraction=heads.fg_bg_sampler.positive_fraction,
            bbox_reg_weights=heads.box_coder.weights,
            score_thresh=heads.score_thresh,
            nms_thresh=heads.nms_thresh,
            detections_per_img=heads.detections_per_img,
            mask_roi_pool=QuickRoiAlign.like(heads.mask_roi_pool),
            mask_head=heads.mask_head,
            mask_predictor=heads.mask_predictor,
        )

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Target], dict[str, Tensor]]:
        """Return detections and losses, as torchvision does."""
        if not self.training or targets is None or not any("ignore" in target for target in targets):
            return super().forward(features, proposals, image_shapes, targets)
        kept = [self._kept(own, target) for own, target in zip(proposals, targets, strict=True)]
        # the label -1 is neither a class nor background
        known = [
            {**target, "labels": target["labels"].masked_fill(target["is_doubtful"], -1)}
            if "ignore" in target
            else target
            for target in targets
        ]
        chosen, matched, labels, wanted = self.select_training_samples(kept, known)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, chosen, image_shapes)))
        if len(logits):
            of_classes, of_boxes = fastrcnn_loss(logits, deltas, labels, wanted)
        else:
            of_classes, of_boxes = logits.sum() * 0, deltas.sum() * 0
        losses = {"loss_classifier": of_classes, "loss_box_reg": of_boxes}
        if self.has_mask():
            positive = [torch.where(own > 0)[0] for own in labels]
            boxes = [own[at] for own, at in zip(chosen, positive, strict=True)]
            head: Any = self.mask_head
            mask_logits = self.mask_predictor(head(self.mask_roi_pool(features, boxes, image_shapes)))  # pyright: ignore[reportOptionalCall]
            places = [own[at] for own, at in zip(matched, positive, strict=True)]
            losses["loss_mask"] = mask_loss(mask_logits, boxes, targets, places)
        return [], losses

    def _kept(self, proposals: Tensor, target: Target) -> Tensor:
        """Return the proposals without background that is mostly ignored."""
        if "ignore" not in target:
            return proposals
        is_left_out = shares_of(target["ignore"], proposals) > MOSTLY
        if len(target["boxes"]):
            overlap = box_iou(target["boxes"].to(proposals.dtype), proposals).amax(dim=0)
            is_left_out = is_left_out & (overlap < self.proposal_matcher.low_threshold)
        return proposals[~is_left_out]


def mask_loss(logits: Tensor, boxes: list[Tensor], targets: list[Target], places: list[Tensor]) -> Tensor:
    """Return the mean loss of the masks over all pixels that are not ignored; 0 if there are none.

    Args:
        logits: [P,C,M,M] of the boxes of all images.
        boxes: [P,4] of each image, xyxy.
        targets: of each image.
        places: of each box, the number of its instance.
    """
    side = logits.shape[-1]
    wanted: list[Tensor] = []
    counted: list[Tensor] = []
    for own, target, place in zip(boxes, targets, places, strict=True):
        wanted.append(project_masks_on_boxes(target["masks"], own, place, side))
        if "ignore" in target:
            ignored = project_masks_on_boxes(target["ignore"][None], own, torch.zeros_like(place), side)
            counted.append((ignored < MOSTLY).to(ignored))
        else:
            counted.append(torch.ones_like(wanted[-1]))
    masks, weights = torch.cat(wanted), torch.cat(counted)
    if not float(weights.sum()):
        return logits.sum() * 0
    labels = torch.cat([target["labels"][place] for target, place in zip(targets, places, strict=True)])
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return (binary_cross_entropy_with_logits(own, masks, reduction="none") * weights).sum() / weights.sum()


def shares_of(ignore: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of ignored pixels in each box.

    Args:
        ignore: uint8 [H,W].
        boxes: float [N,4] xyxy; what lies outside the image does not count.
    """
    height, width = ignore.shape
    sums = torch.zeros(height + 1, width + 1, dtype=torch.int64, device=ignore.device)
    sums[1:, 1:] = ignore.to(torch.int64).cumsum(0).cumsum(1)
    x0, y0 = (boxes[:, at].floor().clamp(0, side).long() for at, side in ((0, width), (1, height)))
    x1, y1 = (boxes[:, at].ceil().clamp(0, side).long() for at, side in ((2, width), (3, height)))
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return inside / ((x1 - x0) * (y1 - y0)).clamp(min=1)


def central(boxes: Tensor) -> Tensor:
    """Return the middle of each box, half as high and half as wide, float [N,4] xyxy."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 4
    return torch.cat([middle - half, middle + half], dim=1)


def _certain(target: Target) -> Target:
    """Return a target without its doubtful boxes."""
    return {**target, "boxes": target["boxes"][~target["is_doubtful"]]} if "ignore" in target else target
