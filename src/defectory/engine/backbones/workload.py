"""Counts what one image costs in a network: parameters, multiply-adds, activations. Reads headers; imports no torch.

A layer's multiply-adds are the size of its weights times the number of positions at which they are applied. diffusers
names every layer after the block it is in, and every block halves or doubles the sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from defectory.engine.backbones.files import COPY_AGAIN, read_json
from defectory.errors import WeightsError

_BLOCK = re.compile(r"^(?:(?:encoder|decoder)\.)?(down|up|mid)_blocks?\.(\d+)?")
_CHECKPOINTED = re.compile(r"^(.*?\.(?:resnets|attentions)\.\d+)\.")
_ONCE_PER_IMAGE = ("time_emb", "add_embedding", "class_embedding")
_UPPER = ("up_blocks.", "conv_out.", "conv_norm_out.")
_TABLES = ("token_embedding", "position_embedding", "positional_embedding")
DEFAULT_HEADS = 8
MUON_ITERATIONS = 5
"""Newton-Schulz iterations of one step of Muon."""
MUON_MIN_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Cost of one forward pass of a network for one image.

    Attributes:
        num_parameters: of the network, whatever the image.
        multiply_adds: of the layers' weights and of attention.
        num_activations: values that all layers return.
        num_scores: values of all attention maps.
        num_kept: values that layers with gradient checkpointing keep: those that blocks return.
            largest_block: values that the layers of one block return; the largest block's number.
        muon_multiply_adds: of one step of Muon, whatever the image.
    """

    num_parameters: int = 0
    multiply_adds: int = 0
    muon_multiply_adds: int = 0
    num_activations: int = 0
    num_scores: int = 0
    num_kept: int = 0
    largest_block: int = 0

    def __add__(self, other: Workload) -> Workload:
        """Return the workload of both networks together."""
        return Workload(
            num_parameters=self.num_parameters + other.num_parameters,
            multiply_adds=self.multiply_adds + other.multiply_adds,
            muon_multiply_adds=self.muon_multiply_adds + other.muon_multiply_adds,
            num_activations=self.num_activations + other.num_activations,
            num_scores=self.num_scores + other.num_scores,
            num_kept=self.num_kept + other.num_kept,
            largest_block=max(self.largest_block, other.largest_block),
        )


@dataclass(frozen=True, kw_only=True)
class BaseWorkload:
    """Cost of each network of a base for one tile.

    `upper` is the part of the denoiser behind the maps that a control network adds to; gradients pass through it.
    """

    denoiser: Workload
    upper: Workload
    control: Workload
    text_encoder: Workload
    encoder: Workload
    decoder: Workload
    latent_px: int
    """Pixels of one tile's latents."""
    latent_values: int
    """The same, in all channels."""


def base_workload(folder: Path, tile_px: int) -> BaseWorkload:
    """Count what one tile costs in a base of Stable Diffusion layout.

    Args:
        folder: of the base.
        tile_px: side of a tile in pixels.

    Raises:
        WeightsError: a part is missing or cannot be read.
    """
    unet, vae, text = (read_json(folder / part / "config.json") for part in ("unet", "vae", "text_encoder"))
    encoders = sorted(path.name for path in folder.glob("text_encoder*") if path.is_dir())
    texts = {f"{part}.{name}": shape for part in encoders for name, shape in weight_shapes(folder / part).items()}
    has_control = (folder / "controlnet").is_dir()
    return workload_of_shapes(
        {"unet": weight_shapes(folder / "unet"), "vae": weight_shapes(folder / "vae"), "text_encoder": texts},
        control=weight_shapes(folder / "controlnet") if has_control else None,
        unet=unet,
        vae=vae,
        num_tokens=int(text.get("max_position_embeddings", 77)),
        tile_px=tile_px,
    )


def workload_of_shapes(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    *,
    control: Mapping[str, tuple[int, ...]] | None,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    num_tokens: int,
    tile_px: int,
) -> BaseWorkload:
    """Count what one tile costs in networks of Stable Diffusion layout.

    Args:
        shapes: of the weights of `unet`, `vae` and all text encoders (`text_encoder`), by name.
        control: of the control network; None for a copy of the denoiser's encoder.
        unet: the UNet's configuration.
        vae: the autoencoder's configuration.
        num_tokens: of a prompt.
        tile_px: side of a tile in pixels.
    """
    side = max(1, tile_px // 2 ** (len(vae["block_out_channels"]) - 1))
    control = _encoder_of(shapes["unet"]) if control is None else control
    upper = {name: shape for name, shape in shapes["unet"].items() if name.startswith(_UPPER)}
    encoder = {name: shape for name, shape in shapes["vae"].items() if name.startswith(("encoder.", "quant_conv."))}
    decoder = {name: shape for name, shape in shapes["vae"].items() if name not in encoder}
    return BaseWorkload(
        denoiser=workload(shapes["unet"], unet, side_px=side, num_tokens=num_tokens),
        upper=workload(upper, unet, side_px=side, num_tokens=num_tokens),
        control=workload(control, unet, side_px=side, num_tokens=num_tokens, image_px=tile_px),
        text_encoder=_of_sequence(shapes["text_encoder"], num_tokens),
        encoder=workload(encoder, vae, side_px=tile_px, num_tokens=0),
        decoder=workload(decoder, vae, side_px=tile_px, num_tokens=0),
        latent_px=side**2,
        latent_values=int(vae["latent_channels"]) * side**2,
    )


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of each weight of a model folder from the headers of its safetensors files.

    Raises:
        WeightsError: a file cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # no mapping
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            found = f"not a whole safetensors file ({str(error).splitlines()[0]})"
            raise WeightsError(path, found, COPY_AGAIN) from None
    return shapes


def workload(
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    *,
    side_px: int,
    num_tokens: int,
    image_px: int | None = None,
) -> Workload:
    """Count what one image costs in a network of diffusers.

    Args:
        shapes: of its weights by name.
        config: its `config.json`; `block_out_channels` and the number of attention heads are read.
        side_px: side of its input, or of the output of a decoder.
        num_tokens: of a prompt.
        image_px: side of a driver in pixels, for a control network.
    """
    sides = _Sides(config, side_px, image_px or side_px)
    total, blocks = _of_weights(shapes), dict[str, int]()
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith("weight") or any(table in name for table in _TABLES):
            continue
        positions = _positions(name, sides, num_tokens)
        values = shape[0] * positions
        keys = _keys(name, sides, num_tokens)
        total += Workload(
            # besides the weights: queries times keys, and attention times values
            multiply_adds=math.prod(shape) * positions + 2 * sides.area(name) * keys * shape[0],
            num_activations=values,
            num_scores=heads_of(config, sides.level(name)) * sides.area(name) * keys,
        )
        of_block = _CHECKPOINTED.match(name)
        if of_block is None:
            total = replace(total, num_kept=total.num_kept + values)
        else:
            blocks[of_block[1]] = blocks.get(of_block[1], 0) + values
            if name.endswith(("conv2.weight", "proj_out.weight")):
                total = replace(total, num_kept=total.num_kept + values)
    return replace(total, largest_block=max(blocks.values(), default=0))


def heads_of(config: Mapping[str, Any], level: int) -> int:
    """Return the number of attention heads at a level; diffusers calls it `attention_head_dim` in old bases."""
    found = config.get("num_attention_heads") or config.get("attention_head_dim") or DEFAULT_HEADS
    return int(found[min(level, len(found) - 1)] if isinstance(found, list) else found)


@dataclass(frozen=True)
class _Sides:
    """The size of the maps that a layer returns, by its name."""

    config: Mapping[str, Any]
    side_px: int
    image_px: int

    def level(self, name: str) -> int:
        """Return how often the sides have been halved where a layer returns its maps."""
        last = len(self.config["block_out_channels"]) - 1
        if name.startswith("controlnet_down_blocks."):
            layers = self.config.get("layers_per_block", 2)
            return min(last, int(name.split(".")[1]) // ((layers if isinstance(layers, int) else layers[0]) + 1))
        if name.startswith(("controlnet_mid_block", "encoder.conv_out", "decoder.conv_in", "quant_conv", "post_quant")):
            return last
        block = _BLOCK.match(name)
        if block is None:
            return 0
        number = int(block[2] or 0)
        if block[1] == "down":
            return min(last, number + ("downsamplers" in name))
        return last if block[1] == "mid" else max(0, last - number - ("upsamplers" in name))

    def area(self, name: str) -> int:
        """Return the number of positions of the maps that a layer returns."""
        if name.startswith("controlnet_cond_embedding."):
            return self._of_driver(name) ** 2
        return max(1, self.side_px // 2 ** self.level(name)) ** 2

    def _of_driver(self, name: str) -> int:
        """Return the side of the maps inside the driver's own layers, every second of which halves it."""
        if ".conv_out" in name:
            return self.side_px
        number = int(name.split(".")[2]) if ".blocks." in name else -1
        return max(self.side_px, self.image_px // 2 ** ((number + 1) // 2))


def _positions(name: str, sides: _Sides, num_tokens: int) -> int:
    if any(part in name for part in _ONCE_PER_IMAGE):
        return 1
    return num_tokens if ".attn2.to_k" in name or ".attn2.to_v" in name else sides.area(name)


def _keys(name: str, sides: _Sides, num_tokens: int) -> int:
    """Return the number of positions attended to; 0 for all layers but one of each attention."""
    if ".attn1.to_q" in name or ".attentions.0.to_q" in name:
        return sides.area(name)
    return num_tokens if ".attn2.to_q" in name else 0


def _of_sequence(shapes: Mapping[str, tuple[int, ...]], num_tokens: int) -> Workload:
    """Count what one prompt costs in a text encoder."""
    layers = [shape for name, shape in shapes.items() if len(shape) == 2 and not any(t in name for t in _TABLES)]
    values = sum(shape[0] for shape in layers) * num_tokens
    multiply_adds = sum(math.prod(shape) for shape in layers) * num_tokens
    return _of_weights(shapes) + Workload(multiply_adds=multiply_adds, num_activations=values, num_kept=values)


def _of_weights(shapes: Mapping[str, tuple[int, ...]]) -> Workload:
    """Count what does not depend on the image: parameters, and a step of Muon."""
    hidden = [shape for shape in shapes.values() if len(shape) >= 2]
    sides = [sorted((shape[0], math.prod(shape[1:]))) for shape in hidden]
    return Workload(
        num_parameters=sum(math.prod(shape) for shape in shapes.values()),
        # a short by long matrix: its square, the square of that, and the square times the matrix
        muon_multiply_adds=MUON_ITERATIONS
        * sum(2 * short**2 * long + short**3 for short, long in sides if short >= MUON_MIN_SIDE),
    )


def _encoder_of(unet: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the weights of a denoiser's encoder, which a control network copies; its few new layers are left out."""
    return {name: shape for name, shape in unet.items() if not name.startswith(_UPPER)}
