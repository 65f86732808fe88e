"""Stage 4: a control network from the same world, the start of phase 2 on the embedded base.

Class colours are drawn anew per image, so that the network learns that bright colour means
defect and leaves which defect to the prompt.
"""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from numpy.typing import NDArray
from torch import Tensor, nn

from defectory.engine.training.attention import use_plain_attention
from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.diffusion import (
    LatentCorpus,
    Noising,
    PriorModel,
    build_scheduler,
    held_out_loss,
    stratified_timesteps,
)
from defectory.pretraining.loop import PretrainEvent, fit

GeometryOf = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[np.uint8]]
"""Image uint8 [H,W,3] and defect mask bool [H,W] to the dim geometry map uint8 [H,W,3] of a driver."""


def paint(geometry: NDArray[np.uint8], class_map: NDArray[np.uint8], hue_offset: float) -> NDArray[np.uint8]:
    """Paint each class of a class map [H,W] on a geometry map [H,W,3] in a bright colour of its own."""
    driver = geometry.copy()
    for index in np.unique(class_map[class_map > 0]):
        colour = colorsys.hsv_to_rgb((hue_offset + 0.381966 * int(index)) % 1.0, 1.0, 1.0)
        driver[class_map == index] = np.round(np.array(colour) * 255).astype(np.uint8)
    return driver


def train_control(
    config: PretrainConfig,
    data: LatentCorpus,
    prior: PriorModel,
    geometry_of: GeometryOf,
    *,
    checkpoint: Path,
    start: ControlNetModel | None = None,
) -> Iterator[PretrainEvent | ControlNetModel]:
    """Train a copy of the base's encoder to obey drivers; the last value yielded is the control network.

    With `control_trains_unet` the UNet of `prior` learns along, in place: its decoder has to draw what the control
    network tells it, and phase 2, where it is frozen, can only use what it has learned here. A share of each batch
    comes without driver, so that the UNet stays a prior of its own.
    """
    device = torch.device(config.device)
    torch.manual_seed(config.seed + 3)
    control = ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=(16, 32, 64)).to(device)
    if start is not None:
        control.load_state_dict(start.state_dict())
    use_plain_attention(control, prior.unet, num_tokens=data.latents[0, 0].numel(), device=device)
    prior.requires_grad_(False)
    trained: nn.Module = control
    num_free = 0
    if config.control_trains_unet:
        prior.unet.requires_grad_(True)
        trained = nn.ModuleDict({"control": control, "unet": prior.unet})
        num_free = round(config.driver_dropout * config.control.batch_size)
    noising = Noising(build_scheduler(), device)
    size = config.control.batch_size
    corpus = data.corpus

    def driver(index: int, hue: float) -> NDArray[np.uint8]:
        class_map = corpus.class_maps[index]
        return paint(geometry_of(corpus.images[index], class_map > 0), class_map, hue)

    def drivers(indices: Tensor, hues: Tensor) -> Tensor:
        batch = torch.from_numpy(np.stack(list(threads.map(driver, indices.tolist(), hues.tolist()))))
        return batch.to(device).permute(0, 3, 1, 2).float() / 255

    def predict(noisy: Tensor, timesteps: Tensor, token_ids: Tensor, condition: Tensor, num_free: int) -> Tensor:
        """Return v [B,C,h,w], the first `num_free` members without driver."""
        with torch.no_grad():
            context = prior.text_encoder(input_ids=token_ids).last_hidden_state
        steered = slice(num_free, None)
        down, mid = control(
            noisy[steered],
            timesteps[steered],
            encoder_hidden_states=context[steered],
            controlnet_cond=condition,
            return_dict=False,
        )
        if num_free:
            down, mid = [_behind_zeros(x, num_free) for x in down], _behind_zeros(mid, num_free)
        return prior.unet(
            noisy,
            timesteps,
            encoder_hidden_states=context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    def loss_of(_step: int, generator: torch.Generator) -> Tensor:
        indices = data.indices(size, generator)
        clean = data.clean(indices)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = stratified_timesteps(size, 1000, generator)
        if num_free:
            # strata come in order of noise: members without driver would all be the least noisy ones
            timesteps = timesteps[torch.randperm(size, generator=generator, device=device)]
        token_ids = data.token_ids(indices, generator)
        hues = torch.rand(size, generator=generator, device=device)
        condition = drivers(indices[num_free:], hues[num_free:])
        weight = data.defect_weight(indices, config.control_defect_weight)
        noisy, target = noising.add(clean, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            predicted = predict(noisy, timesteps, token_ids, condition, num_free)
        per_image = (weight * (predicted.float() - target).square()).mean(dim=(1, 2, 3))
        return (noising.min_snr_weight(timesteps, config.min_snr_gamma, config.min_snr_floor) * per_image).mean()

    held_out_hues = torch.rand(config.num_held_out, generator=torch.Generator().manual_seed(config.seed))

    def predict_held_out(noisy: Tensor, timesteps: Tensor, token_ids: Tensor, indices: Tensor) -> Tensor:
        condition = drivers(indices, held_out_hues[indices - data.num_train])
        return predict(noisy, timesteps, token_ids, condition, 0)

    with ThreadPoolExecutor(config.num_workers) as threads:
        yield from fit(
            trained,
            loss_of,
            config.control,
            stage="control",
            seed=config.seed,
            checkpoint=checkpoint,
            check=lambda _: held_out_loss(config, data, predict_held_out, batch_size=size),
            check_every=config.check_every,
            rng_device=device,
        )
    yield control


def _behind_zeros(residual: Tensor, count: int) -> Tensor:
    return torch.cat([residual.new_zeros(count, *residual.shape[1:]), residual])
