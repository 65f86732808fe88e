"""Makes a control network narrower, and writes it as a stock `ControlNetModel` of full width that predicts the same.

A network of less than full capacity has no attention, as diffusers' small control networks for Stable Diffusion XL, and
the first k of the G groups of its group norms. It is a `ControlNetModel` whose layers have fewer channels:

    narrow     W[:o k/G, :i k/G]            o, i: channels of the full layer
    widened    zeros, but for that corner

Both predict the same, to rounding. A group of zeros has mean and variance zero, so group norm, with weight and bias of
zero, leaves it at zero; convolutions and activations do too. Layer norm, which attention needs, mixes all channels, and
has no such form. The embedding of timesteps and prompts keeps its full width: its frequencies depend on the width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import nn

_INNER = re.compile(r"^(down_blocks|mid_block)\..*\.(norm1|norm2|conv1|conv2|conv_shortcut|conv|time_emb_proj)\.")
_FIRST = ("conv_in.", "controlnet_cond_embedding.conv_out.")
_LAST = ("controlnet_down_blocks.", "controlnet_mid_block.")


def groups_of(capacity: float, num_groups: int) -> int:
    """Return the number of groups of channels that a capacity in (0,1] keeps: at least one."""
    return max(1, round(capacity * num_groups))


def without_attention(full: ControlNetModel) -> ControlNetModel:
    """Make a control network like another, with its weights, but without attention."""
    config: dict[str, Any] = {
        **full.config,
        "down_block_types": ("DownBlock2D",) * len(full.config["down_block_types"]),
        "mid_block_type": "UNetMidBlock2D",
    }
    network: Any = ControlNetModel.from_config(config)
    weights = full.state_dict()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network


def narrowed(full: ControlNetModel, num_kept: int) -> ControlNetModel:
    """Keep the first groups of channels of a network without attention, in place, and return it.

    Args:
        full: of full width.
        num_kept: groups to keep.
    """
    num_groups = int(full.config["norm_num_groups"])
    assert not any("attn" in name for name, _ in full.named_parameters()), "layer norm mixes all channels"
    for name, module in full.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            corner = _corner(f"{name}.{key}", parameter.shape, num_kept, num_groups)
            setattr(module, key, nn.Parameter(parameter.detach()[corner].clone(), parameter.requires_grad))
        if isinstance(module, nn.GroupNorm) and _INNER.match(f"{name}."):
            module.num_groups, module.num_channels = num_kept, len(module.weight)
        elif isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif hasattr(module, "channels") and name.startswith(("down_blocks", "mid_block")):
            module.channels = module.channels * num_kept // num_groups  # pyright: ignore
    return full


def widened(network: ControlNetModel) -> ControlNetModel:
    """Return a stock network of full width that predicts the same, or the network itself if it is one."""
    if num_kept_in(network) is None:
        return network
    weights = network.state_dict()
    full: Any = ControlNetModel.from_config(dict(network.config))
    full = full.to(network.device)
    with torch.no_grad():
        for name, tensor in full.state_dict().items():
            tensor.zero_()[tuple(slice(n) for n in weights[name].shape)] = weights[name]
    return full


def num_kept_in(network: ControlNetModel) -> int | None:
    """Return the number of groups of a narrow network; None if it has full width."""
    width, num_groups = int(network.config["block_out_channels"][0]), int(network.config["norm_num_groups"])
    here = len(network.conv_in.weight)
    return None if here == width else here * num_groups // width


def narrow_again(full: ControlNetModel) -> ControlNetModel:
    """Undo `widened`: leave out the channels that are zero throughout, so that it is small and fast again."""
    if any("attn" in name for name, _ in full.named_parameters()):
        return full
    num_groups = int(full.config["norm_num_groups"])
    used = full.conv_in.weight.detach().reshape(num_groups, -1).abs().amax(dim=1).nonzero()
    num_kept = int(used.max()) + 1 if len(used) else num_groups
    return full if num_kept == num_groups else narrowed(full, num_kept)


def _corner(name: str, shape: torch.Size, num_kept: int, num_groups: int) -> tuple[slice, ...]:
    """Return the part of a parameter that is kept."""
    keeps_out = name.startswith(_FIRST) or _INNER.match(name) is not None
    keeps_in = name.startswith(_LAST) or (keeps_out and not name.startswith(_FIRST) and "time_emb_proj" not in name)
    corner: list[slice] = []
    for axis, size in enumerate(shape):
        cuts = (keeps_out and axis == 0) or (keeps_in and axis == 1)
        corner.append(slice(size * num_kept // num_groups if cuts else size))
    return tuple(corner)
