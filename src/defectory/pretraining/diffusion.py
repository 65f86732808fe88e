"""Stage 2: trains the latent diffusion prior with its text encoder.

v-prediction on a zero-terminal-SNR schedule (Lin et al. 2024, Common Diffusion Noise Schedules
and Sample Steps Are Flawed), so that very dark and very bright images can be drawn; min-SNR
weighting (Hang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from defectory.engine.precision import autocast
from defectory.engine.training.attention import use_plain_attention
from defectory.engine.training.checkpoint import digest_tensors, read_checked_tensors, write_tensors
from defectory.events import Progress, Work
from defectory.pretraining.config import MAX_DEFECT_WEIGHT, PretrainConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.loop import fit
from defectory.pretraining.text import build_text_encoder, build_tokenizer, short_caption, with_defects
from defectory.pretraining.vae import encode
from defectory.procedural.defects import DEFECT_WORDS


def build_unet(config: PretrainConfig) -> UNet2DConditionModel:
    """Build an untrained UNet; text enters at the lowest resolutions, where attention is cheap on a CPU."""
    torch.manual_seed(config.seed + 2)
    reads = [stage >= 3 - config.text_stages for stage in range(3)]
    heads = tuple(max(1, channels // (32 if channels % 32 == 0 else 28)) for channels in config.unet_channels)
    return UNet2DConditionModel(
        sample_size=config.tile_px // 4,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        layers_per_block=1,
        down_block_types=tuple("CrossAttnDownBlock2D" if reading else "DownBlock2D" for reading in reads),
        up_block_types=tuple("CrossAttnUpBlock2D" if reading else "UpBlock2D" for reading in reversed(reads)),
        attention_head_dim=heads[-1] if config.text_stages == 1 else heads,  # pyright: ignore[reportArgumentType]
        cross_attention_dim=config.text_width,
        addition_embed_type="text" if config.pools_caption else None,
        norm_num_groups=config.norm_groups,
    )


def build_scheduler() -> DDIMScheduler:
    """Build the base's scheduler: v-prediction, zero terminal SNR, trailing steps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Noising:
    """The forward process of a schedule, eq. numbers as in Salimans & Ho 2022."""

    def __init__(self, scheduler: DDIMScheduler, device: torch.device) -> None:
        self.alpha_bar = scheduler.alphas_cumprod.to(device).float()

    def add(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy latents and the v target: x_t = a x + s e, v = a e - s x (app. D)."""
        alpha = self.alpha_bar[timesteps].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - self.alpha_bar[timesteps]).sqrt().view(-1, 1, 1, 1)
        return alpha * clean + sigma * noise, alpha * noise - sigma * clean

    def min_snr_weight(self, timesteps: Tensor, gamma: float, floor: float) -> Tensor:
        """Compute the min-SNR weight for v-prediction, float [B]. The `floor` lets tones and captions be learned."""
        alpha_bar = self.alpha_bar[timesteps]
        snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-8)
        return (snr.clamp(max=gamma) / (snr + 1)).clamp_min(floor)


MIN_AREA_PX = 12
"""Defect pixels that a window must contain for its caption to name the defect."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square window of an image: `y`, `x` and `side` in latent pixels of `factor` pixels."""

    y: int
    x: int
    side: int
    factor: int

    @property
    def latents(self) -> tuple[slice, slice]:
        """Return rows and columns of the latents."""
        return slice(self.y, self.y + self.side), slice(self.x, self.x + self.side)

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Return rows and columns of the image."""
        rows, columns = (slice(at * self.factor, (at + self.side) * self.factor) for at in (self.y, self.x))
        return rows, columns


def cache_latents(config: PretrainConfig, corpus: Corpus, vae: AutoencoderKL, cache: Path) -> Work[None]:
    """Encode the corpus to a file of scaled latents (fp16 [N,C,h,w]), unless a whole one exists."""
    if read_checked_tensors(cache) is not None:
        return
    scale = float(vae.config["scaling_factor"])
    parts: list[Tensor] = []
    for start in range(0, len(corpus), ENCODE_IMAGES):
        piece = range(start, min(start + ENCODE_IMAGES, len(corpus)))
        parts.append((encode(vae, corpus, piece, config) * scale).half())
        yield Progress(done=piece.stop, total=len(corpus), stage="latents")
    latents = {"latents": torch.cat(parts).contiguous()}
    write_tensors(cache, latents, {"sha256": digest_tensors(latents)})


ENCODE_IMAGES = 512


class LatentCorpus:
    """Scaled latents (fp16, from `cache_latents`), token ids and defect positions of the corpus, on the recipe's
    device.
    """

    def __init__(self, config: PretrainConfig, corpus: Corpus, tokenizer: CLIPTokenizer, *, cache: Path) -> None:
        self.config, self.corpus, self.tokenizer = config, corpus, tokenizer
        self.num_train = len(corpus) - config.num_held_out
        self.device = torch.device(config.device)
        self.latents = load_file(cache)["latents"].to(self.device)
        self.factor = config.tile_px // self.latents.shape[-1]
        self.holds_defect = torch.cat([self._defects_of(start) for start in range(0, len(corpus), ENCODE_IMAGES)])
        short = [
            short_caption(*words) for words in zip(corpus.tones, corpus.materials, corpus.defect_words, strict=True)
        ]
        self._long_ids, self._short_ids, self._empty_ids = (
            self.tokenize(texts) for texts in (corpus.captions, short, [""])
        )

    def _defects_of(self, start: int) -> Tensor:
        class_maps = torch.from_numpy(self.corpus.class_maps[start : start + ENCODE_IMAGES]).to(self.device)
        return nn.functional.max_pool2d((class_maps > 0).float()[:, None], self.factor) > 0

    def indices(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw training image indices."""
        return torch.randint(self.num_train, (batch_size,), generator=generator, device=generator.device)

    def window(self, crop_px: int, generator: torch.Generator) -> Window:
        """Draw a window of `crop_px`, on whole latent pixels."""
        side, full = crop_px // self.factor, self.latents.shape[-1]
        y, x = torch.randint(full - side + 1, (2,), generator=generator, device=generator.device).tolist()
        return Window(y=y, x=x, side=side, factor=self.factor)

    def clean(self, indices: Tensor, windows: Sequence[Window] | None = None) -> Tensor:
        """Return scaled latents float32 [B,C,h,w], cut to one window each if windows are given."""
        return _windowed(self.latents, indices, windows).float()

    def token_ids(self, indices: Tensor, generator: torch.Generator, windows: Sequence[Window] | None = None) -> Tensor:
        """Return token ids [B,L], with some captions shortened or dropped; a window's caption names its own defects."""
        draws = torch.rand(len(indices), generator=generator, device=generator.device)
        dropped = draws < self.config.caption_dropout
        shortened = draws < self.config.caption_dropout + self.config.short_caption_share
        if windows is None:
            long_ids, short_ids = self._long_ids[indices], self._short_ids[indices]
        else:
            words = [self._words_in(index, window) for index, window in zip(indices.tolist(), windows, strict=True)]
            named = list(zip(indices.tolist(), words, strict=True))
            long_ids = self.tokenize([with_defects(self.corpus.captions[i], w) for i, w in named])
            short_ids = self.tokenize(
                [short_caption(self.corpus.tones[i], self.corpus.materials[i], w) for i, w in named]
            )
        return torch.where(dropped[:, None], self._empty_ids, torch.where(shortened[:, None], short_ids, long_ids))

    def _words_in(self, index: int, window: Window) -> tuple[str, ...]:
        areas = np.bincount(self.corpus.class_maps[index][window.pixels].ravel(), minlength=len(DEFECT_WORDS) + 1)
        return tuple(
            word
            for word in dict.fromkeys(self.corpus.defect_words[index])
            if areas[DEFECT_WORDS.index(word) + 1] >= MIN_AREA_PX
        )

    def tokenize(self, captions: list[str]) -> Tensor:
        """Tokenize captions to ids [B,L]."""
        batch: Any = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.config.text_length, return_tensors="pt"
        )
        return batch.input_ids.to(self.device)

    def defect_weight(
        self, indices: Tensor, weight: float, windows: Sequence[Window] | None = None, *, share: float = 0.0
    ) -> Tensor:
        """Compute the loss weight [B,1,h,w]: `weight` on and next to defect pixels, 1 elsewhere.

        If these pixels weigh less than `share` of their image, their weight is raised to that share, up to
        `MAX_DEFECT_WEIGHT` each.
        """
        margin = self.config.defect_margin
        near = nn.functional.max_pool2d(
            _windowed(self.holds_defect, indices, windows).float(), 2 * margin + 1, stride=1, padding=margin
        )
        part = near.mean(dim=(1, 2, 3), keepdim=True).clamp(1e-6, 1 - 1e-6)
        wanted = (share / (1 - share) * (1 - part) / part).clamp(min=weight, max=max(weight, MAX_DEFECT_WEIGHT))
        return 1 + (wanted - 1) * near


def _windowed(maps: Tensor, indices: Tensor, windows: Sequence[Window] | None) -> Tensor:
    if windows is None:
        return maps[indices]
    return torch.stack([maps[i][..., *w.latents] for i, w in zip(indices.tolist(), windows, strict=True)])


class PriorModel(nn.Module):
    """UNet and text encoder, trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Return the predicted v, [B,C,h,w]."""
        context = self.text_encoder(input_ids=token_ids).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=context).sample


def stratified_timesteps(batch_size: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """Draw one timestep per equal stratum of the range, int64 [B]: uniform, with less variance."""
    device = generator.device
    offsets = (
        torch.arange(batch_size, device=device) + torch.rand(batch_size, generator=generator, device=device)
    ) / batch_size
    return (offsets * num_timesteps).long().clamp(max=num_timesteps - 1)


HeldOutStep = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps noisy latents, timesteps, token ids and corpus indices to the predicted v."""


@torch.no_grad()
def held_out_loss(
    config: PretrainConfig, data: LatentCorpus, predict: HeldOutStep, *, batch_size: int, at_defects: bool = False
) -> float:
    """Compute the mean squared error of v over the held-out images, with full captions and fixed noise.

    Args:
        config: device, precision and seed.
        data: the corpus; its last `num_held_out` images are held out.
        predict: the model.
        batch_size: images at once; each batch has timesteps from all strata.
        at_defects: average over latent pixels with a defect only.
    """
    device, noising = torch.device(config.device), Noising(build_scheduler(), torch.device(config.device))
    generator = torch.Generator().manual_seed(config.seed)
    total, count = 0.0, 0.0
    for start in range(data.num_train, data.num_train + config.num_held_out, batch_size):
        indices = torch.arange(start, min(start + batch_size, data.num_train + config.num_held_out))
        clean = data.clean(indices).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        timesteps = stratified_timesteps(len(indices), 1000, generator).to(device)
        token_ids = data.tokenize([data.corpus.captions[i] for i in indices.tolist()]).to(device)
        noisy, target = noising.add(clean, noise, timesteps)
        with autocast(config.mixed_precision, device):
            predicted = predict(noisy, timesteps, token_ids, indices)
        errors = (predicted.float() - target).square().mean(dim=1, keepdim=True)
        where = data.holds_defect[indices].float() if at_defects else torch.ones_like(errors)
        total, count = total + float((errors * where).sum()), count + float(where.sum())
    return total / max(count, 1.0)


def train_prior(
    config: PretrainConfig,
    data: LatentCorpus,
    tokenizer: CLIPTokenizer,
    *,
    checkpoint: Path,
    start: PriorModel | None = None,
    draw: Callable[[PriorModel, int], None] | None = None,
) -> Work[PriorModel]:
    """Train UNet and text encoder on the cached latents, and return them with EMA weights.

    Args:
        config: the recipe.
        data: the corpus as latents.
        tokenizer: of the captions.
        checkpoint: as for `fit`.
        start: model to start from.
        draw: called with the model and the step at every held-out loss.
    """
    device = torch.device(config.device)
    model = PriorModel(build_unet(config), build_text_encoder(tokenizer, config)).to(device)
    if start is not None:
        model.load_state_dict(start.state_dict())
    use_plain_attention(model.unet, num_tokens=data.latents[0, 0].numel(), device=device)
    # a twelfth faster on a CPU
    model.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    unet: Any = torch.compile(model.unet) if config.compiles else model.unet
    noising = Noising(build_scheduler(), device)
    num_crop_steps = round(config.crop_share * config.diffusion.num_steps)
    crops_per_step = config.diffusion.batch_size * (config.tile_px // config.crop_px) ** 2

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        cropped = step < num_crop_steps
        size = crops_per_step if cropped else config.diffusion.batch_size
        indices = data.indices(size, generator)
        windows = [data.window(config.crop_px, generator) for _ in range(size)] if cropped else None
        clean = data.clean(indices, windows)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = stratified_timesteps(size, 1000, generator)
        token_ids = data.token_ids(indices, generator, windows)
        weight = data.defect_weight(indices, config.defect_weight, windows, share=config.defect_share)
        noisy, target = noising.add(clean, noise, timesteps)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with autocast(config.mixed_precision, device):
            context = model.text_encoder(input_ids=token_ids).last_hidden_state
            predicted = unet(noisy, timesteps, encoder_hidden_states=context).sample
        per_image = (weight * (predicted.float() - target).square()).mean(dim=(1, 2, 3))
        return (noising.min_snr_weight(timesteps, config.min_snr_gamma, config.min_snr_floor) * per_image).mean()

    def check(step: int) -> float:
        if draw is not None:
            draw(model, step)
        return held_out_loss(
            config,
            data,
            lambda noisy, timesteps, token_ids, _: model(noisy, timesteps, token_ids),
            batch_size=config.diffusion.batch_size,
        )

    yield from fit(
        model,
        loss_of,
        config.diffusion,
        stage="diffusion",
        seed=config.seed,
        checkpoint=checkpoint,
        check=check,
        check_every=config.check_every,
        rng_device=device,
    )
    # safetensors can only store plain memory layouts
    model.unet.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return model


def make_tokenizer(config: PretrainConfig, corpus: Corpus) -> CLIPTokenizer:
    """Fit the base's tokenizer to the corpus's captions, long and short."""
    short = [short_caption(*words) for words in zip(corpus.tones, corpus.materials, corpus.defect_words, strict=True)]
    return build_tokenizer([*corpus.captions, *short], config)
