"""Mask2Former of transformers, from a local folder of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.ops import masks_to_boxes
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers.utils import logging

from defectory.errors import WeightsError
from defectory.files import digest_file
from defectory.segmentation.models.family import Build

CLASS_LAYERS = ("class_predictor.", "criterion.empty_weight")
"""Tensors with rows per class and for no object; they start anew unless the classes are as many as in the weights."""
CONFIG, WEIGHTS, INDEX, INPUT = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DIVISOR = 32
"""Sides are padded to a multiple of this."""
MAX_DETECTIONS = 100
MIN_SCORE = 0.05
NAME_A_FOLDER = "name a folder made by `save_pretrained`, with config.json and model.safetensors"


class Segmenter(nn.Module):
    """Mask2Former in torchvision's convention for detection modules.

    Args:
        net: of transformers.
        mean: of each channel of images in [0,1].
        std: of each channel.
    """

    def __init__(self, net: Mask2FormerForUniversalSegmentation, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net: Any = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses if there are targets, else detections."""
        if self.training and targets is not None:
            return self._losses(images, targets)
        # one after the other, so that an image's padding does not depend on the others
        return [self._detections(image) for image in images]

    def _batch(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return normalised images padded to one size, and which pixels are theirs."""
        sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
        height, width = (-(-side // DIVISOR) * DIVISOR for side in sides)
        normal = [(image - self.mean) / self.std for image in images]
        pixels = torch.stack([_padded(image, height, width) for image in normal])
        return pixels, torch.stack([_padded(torch.ones_like(image[0]), height, width) for image in images])

    def _losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        pixels, own = self._batch(images)
        height, width = pixels.shape[2:]
        found = self.net(pixel_values=pixels, pixel_mask=own, output_auxiliary_logits=True)
        # the matching of queries and targets needs fp32
        with torch.autocast(pixels.device.type, enabled=False):
            return self.net.get_loss_dict(
                masks_queries_logits=found.masks_queries_logits.float(),
                class_queries_logits=found.class_queries_logits.float(),
                mask_labels=[_padded(target["masks"].float(), height, width) for target in targets],
                class_labels=[target["labels"] - 1 for target in targets],
                auxiliary_predictions=[
                    {name: value.float() for name, value in layer.items()} for layer in found.auxiliary_logits
                ],
            )

    def _detections(self, image: Tensor) -> dict[str, Tensor]:
        pixels, own = self._batch([image])
        found = self.net(pixel_values=pixels, pixel_mask=own)
        chances = found.class_queries_logits[0].float().softmax(dim=-1)[:, :-1]
        num_classes = chances.shape[1]
        scores, places = chances.flatten().topk(min(MAX_DETECTIONS, chances.numel()))
        kept = scores >= MIN_SCORE
        scores, places = scores[kept], places[kept]
        logits = found.masks_queries_logits[0, places // num_classes].float()
        height, width = image.shape[1:]
        soft = _resized(logits, (pixels.shape[2], pixels.shape[3]))[:, :height, :width].sigmoid()
        inside = soft >= 0.5
        # a query's score counts as far as it is sure of its mask
        scores = scores * (soft * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
        kept = inside.any(dim=2).any(dim=1) & (scores >= MIN_SCORE)
        order = scores[kept].argsort(descending=True, stable=True)
        soft, inside = soft[kept][order], inside[kept][order]
        boxes = masks_to_boxes(inside)
        # the right and lower border is excluded
        boxes[:, 2:] += 1
        return {
            "boxes": boxes,
            "labels": (places % num_classes + 1)[kept][order],
            "scores": scores[kept][order],
            "masks": soft[:, None],
        }


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    return pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def _resized(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return interpolate(logits[:, None], size_hw, mode="bilinear", align_corners=False)[:, 0]


class Mask2Former:
    """The family of Mask2Former. Its weights are a folder on the user's disk."""

    takes_weights = True

    def build(self, build: Build) -> tuple[nn.Module, Mapping[str, Any]]:
        """Build a segmenter from a folder of weights, with a new class layer unless the classes are as many."""
        if build.built is not None:
            built = build.built
            net = Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(dict(built["config"])))
            return Segmenter(net, built["mean"], built["std"]), built
        folder = _folder_of(build)
        config = _config_of(folder, build.num_classes)
        files = _weight_files(folder)
        net, new = _load(config, files, folder)
        normal = _json(folder / INPUT) if (folder / INPUT).is_file() else {}
        about: dict[str, Any] = {
            "config": config.to_dict(),
            "mean": normal.get("image_mean", MEAN),
            "std": normal.get("image_std", STD),
            "weights": {"files": {path.name: digest_file(path) for path in files}, "new_layers": list(new)},
        }
        return Segmenter(net, about["mean"], about["std"]), json.loads(json.dumps(about))


def _folder_of(build: Build) -> Path:
    if build.weights is None:
        raise WeightsError(
            "segmentation.weights", "is not set, and the family mask2former has no weights of its own", NAME_A_FOLDER
        )
    if not build.weights.is_dir():
        raise WeightsError(
            build.weights, "is no folder on this machine; names are not looked up on the network", NAME_A_FOLDER
        )
    return build.weights


def _config_of(folder: Path, num_classes: int) -> Mask2FormerConfig:
    """Return the configuration for a number of classes, after a check that it needs nothing but the folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(folder, f"has no {CONFIG}", NAME_A_FOLDER)
    content = _json(path)
    if content.get("model_type") != "mask2former":
        kind = content.get("model_type")
        raise WeightsError(path, f"is of the model type {kind!r}, not 'mask2former'", NAME_A_FOLDER)
    if content.get("backbone") or content.get("use_pretrained_backbone"):
        raise WeightsError(path, "names a backbone that would be downloaded", "save the model with its backbone_config")
    kept = {name: value for name, value in content.items() if name not in ("id2label", "label2id", "num_labels")}
    try:
        return Mask2FormerConfig.from_dict({**kept, "num_labels": num_classes})
    except Exception as error:  # transformers checks little of a configuration by itself
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(path, f"cannot be used ({reason})", NAME_A_FOLDER) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(path, f"cannot be read as JSON ({error})", "copy it again") from None
    if not isinstance(content, dict):
        raise WeightsError(path, "is no JSON object", "copy it again")
    return content


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    names = sorted(set(_json(index).get("weight_map", {}).values())) if index.is_file() else [WEIGHTS]
    for name in names:
        if Path(name).name != name:
            raise WeightsError(index, f"names a file outside the folder, {name}", NAME_A_FOLDER)
        if not (folder / name).is_file():
            pickles = sorted(path.name for path in folder.glob("*.bin"))
            found = f"has no {name}" + (f"; {pickles[0]} is a pickle, which can run code; refused" if pickles else "")
            raise WeightsError(folder, found, "save the model as safetensors")
    return [folder / name for name in names]


def _load(config: Mask2FormerConfig, files: list[Path], folder: Path) -> tuple[Any, tuple[str, ...]]:
    """Load a net, and return it with the names of the tensors that are new.

    transformers loads it, since its names of tensors on disk differ from those in memory.
    """
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError, ValueError) as error:
            raise WeightsError(path, f"cannot be read ({str(error).splitlines()[0][:120]})", "copy it again") from None
    level = logging.get_verbosity()
    # it prints a table of the new tensors
    logging.set_verbosity_error()
    try:
        loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers checks little of a configuration by itself
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(folder, f"cannot be loaded ({reason})", NAME_A_FOLDER) from None
    finally:
        logging.set_verbosity(level)
    net, found = loaded
    new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    wrong = sorted(name for name in new if not name.startswith(CLASS_LAYERS))
    if wrong:
        found = f"its weights do not fit {CONFIG}: {wrong[0]} is missing or has another shape"
        raise WeightsError(folder, found, "copy both again")
    return net, tuple(sorted(new))


FAMILY = Mask2Former()
