"""Makes, reads and calls the control networks of Stable Diffusion 3: diffusers' `SD3ControlNetModel`.

    h_i' = h_i + r_j,   j = floor(i n / N)

    h_i    what the i-th of the transformer's N blocks returns
    r_j    what the j-th of the control network's n blocks adds, times the scale; zero at first

The network reads the driver as latents of the base's own autoencoder. Its blocks are copies of the transformer's first
half, as in diffusers' training script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SD3ControlNetModel
from torch import Tensor, nn

from defectory.engine.backbones.backbone import Context
from defectory.engine.backbones.files import verify_part
from defectory.engine.backbones.parts import load_part
from defectory.errors import WeightsError

if TYPE_CHECKING:
    from defectory.engine.backbones.sd3.model import StableDiffusion3


@dataclass(frozen=True, kw_only=True)
class BlockResiduals:
    """What a control network adds after blocks of the transformer: maps float [B,L,D], first block first."""

    blocks: Sequence[Tensor]

    def denoiser_arguments(self) -> dict[str, Any]:
        """Return them as diffusers' transformer takes them."""
        return {"block_controlnet_hidden_states": self.blocks}


@dataclass(frozen=True)
class SD3Control:
    """The control networks of a backbone."""

    backbone: StableDiffusion3

    def start(self, *, init: str, seed: int) -> nn.Module:
        """Copy the first half of the transformer, or return the network that lies beside the base.

        Raises:
            WeightsError: `embedded` is set, but no control network lies beside the base.
        """
        beside = self.backbone.controlnet
        if init == "embedded" and beside is None:
            raise WeightsError(
                "condition.init", "embedded, but no control network lies beside this base", "set it to copy or auto"
            )
        if beside is not None and init != "copy":
            return beside
        return copy_of(self.backbone.transformer, seed=seed)

    def load(self, folder: Path) -> nn.Module:
        """Load a folder of an `SD3ControlNetModel`.

        Raises:
            WeightsError: the folder is incomplete, holds pickles, or was made for a transformer of other sizes.
        """
        network = load_sd3_controlnet(folder, self.backbone.device)
        for key in ("in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "joint_attention_dim"):
            found, needed = network.config[key], self.backbone.transformer.config[key]
            if found != needed:
                raise WeightsError(folder, f"{key} is {found}, the base's is {needed}", "learn the condition again")
        return network

    def residuals(
        self, network: nn.Module, latents: Tensor, timesteps: Tensor, context: Context, drivers: Tensor, *, scale: float
    ) -> BlockResiduals:
        """Compute what the network adds for drivers float [B,3,H,W] in [0,1]."""
        with torch.no_grad():
            seen = self.backbone.encode_images(2 * drivers - 1)
        (blocks,) = network(
            latents,
            controlnet_cond=seen,
            conditioning_scale=scale,
            timestep=self.backbone.times(latents, timesteps),
            return_dict=False,
            **self.backbone.conditioning(latents, context),
        )
        return BlockResiduals(blocks=blocks)


def copy_of(transformer: nn.Module, *, seed: int) -> SD3ControlNetModel:
    """Make a control network from the first half of a transformer's blocks, in float32, on its device.

    diffusers' own `from_transformer` changes the transformer's configuration, so it is not called.

    Args:
        transformer: an `SD3Transformer2DModel`.
        seed: of new parameters; all that are left are zero.
    """
    source: Any = transformer
    num_layers = max(1, int(source.config["num_layers"]) // 2)
    settings = {
        **{key: value for key, value in source.config.items() if not key.startswith("_")},
        "num_layers": num_layers,
        "dual_attention_layers": [i for i in source.config["dual_attention_layers"] if i < num_layers],
        "extra_conditioning_channels": 0,
        # it reads the same pooled text as the transformer that it is a copy of
        "force_zeros_for_pooled_projection": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = SD3ControlNetModel.from_config(settings)
    for part in ("pos_embed", "time_text_embed", "context_embedder"):
        getattr(network, part).load_state_dict(getattr(source, part).state_dict())
    for ours, theirs in zip(network.transformer_blocks, source.transformer_blocks, strict=False):
        ours.load_state_dict(theirs.state_dict())
    return network.float().to(next(source.parameters()).device)


def load_sd3_controlnet(folder: Path, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Any:
    """Check and load the folder of an `SD3ControlNetModel` that reads what ours do.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or the network reads drivers or texts in another way.
    """
    verify_part(folder)
    network = load_part(SD3ControlNetModel, folder, device, dtype)
    asked = {
        "extra_conditioning_channels": 0,
        "force_zeros_for_pooled_projection": False,
        "use_pos_embed": True,
        "pos_embed_type": "sincos",
    }
    for key, needed in asked.items():
        if network.config[key] != needed:
            raise WeightsError(
                folder, f"{key} is {network.config[key]}, {needed} was expected", "set condition.init to copy"
            )
    return network
