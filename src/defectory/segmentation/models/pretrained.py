"""Loads weights of torchvision's Mask R-CNNs from the user's disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from defectory.errors import WeightsError

CLASS_LAYERS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
"""Layers with rows per class; they start anew unless the classes are as many as in the weights."""


def found_weights(file_name: str) -> Path | None:
    """Return a file of torch's own download folder; None if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    return path if path.is_file() else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, without running code from the file.

    Raises:
        WeightsError: the file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(path, "no such file", "correct segmentation.weights, or leave it out")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, ValueError, SafetensorError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(path, f"cannot be read as weights ({reason})", "copy or download it again") from None
    except Exception as error:  # pickle's own errors share no base class
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        raise WeightsError(
            path, f"holds more than weights ({reason}); refused", "save its state dict alone, best as safetensors"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(path, "holds no state dict", "give weights of torchvision's Mask R-CNN")
    return {str(name): value.float() if value.is_floating_point() else value for name, value in content.items()}


def apply_weights(model: nn.Module, path: Path, *, family: str) -> tuple[str, ...]:
    """Load weights into a model; layers of the classes keep their new weights if their number differs.

    Returns:
        Names of the tensors that stay new.

    Raises:
        WeightsError: the file cannot be read, or holds weights of another family.
    """
    state, own = read_weights(path), model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    others = [
        name
        for name in own
        if name in state and state[name].shape != own[name].shape and not name.startswith(CLASS_LAYERS)
    ]
    if missing or others:
        name = (missing or others)[0]
        found = "is missing" if missing else f"has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        raise WeightsError(
            path, f"is not of the family {family}: {name} {found}", "set segmentation.model to their family"
        )
    new = tuple(name for name in own if name.startswith(CLASS_LAYERS) and state[name].shape != own[name].shape)
    known = {name: value for name, value in state.items() if name in own and name not in new}
    model.load_state_dict(known, strict=False)
    return new


def freeze_norms(module: nn.Module, *, eps: float | None = None) -> None:
    """Replace every batch norm by one whose statistics stay as they are: batches of a few images would spoil them."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps if eps is None else eps)
            setattr(module, name, frozen)
        else:
            freeze_norms(child, eps=eps)
