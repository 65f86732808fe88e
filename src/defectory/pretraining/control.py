"""Stage 4: trains a control network on the same world, the start of phase 2 on the embedded base.

Class colours are random per image, so that the network learns that a bright colour means a defect, and leaves the kind
of defect to the prompt.
"""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

import colorsys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from numpy.typing import NDArray
from torch import Tensor

from defectory.engine.precision import autocast
from defectory.engine.training.attention import use_plain_attention
from defectory.events import Work
from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.diffusion import (
    LatentCorpus,
    Noising,
    PriorModel,
    build_scheduler,
    held_out_loss,
    stratified_timesteps,
)
from defectory.pretraining.loop import fit

GeometryOf = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[np.uint8]]
"""Maps an image uint8 [H,W,3] and a defect mask bool [H,W] to the dim geometry map uint8 [H,W,3] of a driver."""


def paint(geometry: NDArray[np.uint8], class_map: NDArray[np.uint8], hue_offset: float) -> NDArray[np.uint8]:
    """Paint each class of a class map [H,W] on a geometry map [H,W,3] in a bright colour of its own."""
    driver = geometry.copy()
    for index in np.unique(class_map[class_map > 0]):
        colour = colorsys.hsv_to_rgb((hue_offset + 0.381966 * int(index)) % 1.0, 1.0, 1.0)
        driver[class_map == index] = np.round(np.array(colour) * 255).astype(np.uint8)
    return driver


class _Steered:
    """The base steered by a control network, on drivers painted from the corpus; the text encoder is frozen."""

    def __init__(
        self,
        control: ControlNetModel,
        prior: PriorModel,
        corpus: Corpus,
        geometry_of: GeometryOf,
        *,
        threads: ThreadPoolExecutor,
        device: torch.device,
    ) -> None:
        self._control, self._prior, self._corpus, self._geometry_of = control, prior, corpus, geometry_of
        self._threads, self._device = threads, device

    def drivers(self, indices: Tensor, hues: Tensor) -> Tensor:
        """Return the drivers of corpus images, float [B,3,H,W] in [0,1], on the device.

        Args:
            indices: int64 [B], of images.
            hues: float [B] in [0,1], the hue of each image's first class.
        """
        batch = torch.from_numpy(np.stack(list(self._threads.map(self._driver, indices.tolist(), hues.tolist()))))
        return batch.to(self._device).permute(0, 3, 1, 2).float() / 255

    def _driver(self, index: int, hue: float) -> NDArray[np.uint8]:
        class_map = self._corpus.class_maps[index]
        return paint(self._geometry_of(self._corpus.images[index], class_map > 0), class_map, hue)

    def predict(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor, drivers: Tensor) -> Tensor:
        """Predict v [B,C,h,w]."""
        with torch.no_grad():
            context = self._prior.text_encoder(input_ids=token_ids).last_hidden_state
        down, mid = self._control(
            noisy, timesteps, encoder_hidden_states=context, controlnet_cond=drivers, return_dict=False
        )
        return self._prior.unet(
            noisy,
            timesteps,
            encoder_hidden_states=context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample


def train_control(
    config: PretrainConfig,
    data: LatentCorpus,
    prior: PriorModel,
    geometry_of: GeometryOf,
    *,
    checkpoint: Path,
    start: ControlNetModel | None = None,
) -> Work[ControlNetModel]:
    """Train a copy of the base's encoder to follow drivers, and return it.

    The base stays frozen, as in phase 2 (decision 019).
    """
    device = torch.device(config.device)
    torch.manual_seed(config.seed + 3)
    control = ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=(16, 32, 64)).to(device)
    if start is not None:
        control.load_state_dict(start.state_dict())
    use_plain_attention(control, prior.unet, num_tokens=data.latents[0, 0].numel(), device=device)
    prior.requires_grad_(False)
    hues = torch.rand(config.num_held_out, generator=torch.Generator().manual_seed(config.seed))

    with ThreadPoolExecutor(config.num_workers) as threads:
        steered = _Steered(control, prior, data.corpus, geometry_of, threads=threads, device=device)

        def predict_held_out(noisy: Tensor, timesteps: Tensor, token_ids: Tensor, indices: Tensor) -> Tensor:
            drivers = steered.drivers(indices, hues[indices - data.num_train])
            return steered.predict(noisy, timesteps, token_ids, drivers)

        yield from fit(
            control,
            _loss_of(config, data, steered),
            config.control,
            stage="control",
            seed=config.seed,
            checkpoint=checkpoint,
            check=lambda _: held_out_loss(config, data, predict_held_out, batch_size=config.control.batch_size),
            check_every=config.check_every,
            rng_device=device,
        )
    return control


def _loss_of(config: PretrainConfig, data: LatentCorpus, steered: _Steered) -> Callable[[int, torch.Generator], Tensor]:
    device, size = torch.device(config.device), config.control.batch_size
    noising = Noising(build_scheduler(), device)

    def loss_of(_step: int, generator: torch.Generator) -> Tensor:
        indices = data.indices(size, generator)
        clean = data.clean(indices)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = stratified_timesteps(size, 1000, generator)
        token_ids = data.token_ids(indices, generator)
        hues = torch.rand(size, generator=generator, device=device)
        drivers = steered.drivers(indices, hues)
        weight = data.defect_weight(indices, config.control_defect_weight)
        noisy, target = noising.add(clean, noise, timesteps)
        with autocast(config.mixed_precision, device):
            predicted = steered.predict(noisy, timesteps, token_ids, drivers)
        per_image = (weight * (predicted.float() - target).square()).mean(dim=(1, 2, 3))
        return (noising.min_snr_weight(timesteps, config.min_snr_gamma, config.min_snr_floor) * per_image).mean()

    return loss_of
