"""New masks from a small diffusion model of the training masks.

The model is conditioned on class, size, fullness and number of branches. It learns signed distances on a small canvas
(`canvas`) from perturbed training masks, with v-prediction at zero terminal SNR (Salimans & Ho 2022; Lin et al. 2024).
Several masks are drawn at once; copies of training masks are avoided, and the mask nearest to the requested figures is
returned.
"""

# diffusers wraps its methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from defectory.engine.training.checkpoint import remove_checkpoint, write_tensors
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.loop import train
from defectory.engine.training.noise import NoiseSchedule, generator_of, stratified_timesteps
from defectory.errors import WeightsError
from defectory.events import Work
from defectory.files import digest_file, digest_json
from defectory.masks.canvas import SIDE_PX, from_canvas, on_canvas
from defectory.masks.config import MaskConfig
from defectory.masks.generate import at_quantile
from defectory.masks.perturb import cropped, perturb, size_of
from defectory.masks.shapes import LineShape, measure

Mask = NDArray[np.bool_]
MODEL_FILE = "model.safetensors"
FOLD = 2
"""Each block of FOLD x FOLD canvas pixels becomes channels of one network pixel: four times faster than single pixels.
"""
WIDTHS = (48, 96)
VARIANTS = 16
"""Number of perturbed copies of each training mask to train on."""
SAMPLE_STEPS = 12
CANDIDATES = 4
"""Number of masks drawn at once; the one nearest to the request is taken."""
MAX_TRIES = 3
MAX_COPY_IOU = 0.85
"""A mask with a higher IoU to a training mask, mirrored or rotated by quarter turns, is a copy."""
SIZE_JITTER, FULLNESS_JITTER = 0.12, 0.15
REFERENCE_PX = 32.0
MANY_BRANCHES = 3.0
BRANCH_PENALTY = 0.3
"""Penalty for each missing or extra branch, in doublings of the area."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The figures requested of a mask.

    Class, longest side in pixels, area as a share of the square on that side, and number of branches (0 for a blob).
    """

    category_id: int
    length_px: float
    fullness: float
    branches: float


class MaskDiffusion:
    """A diffusion model of the masks of all classes; deterministic in its arguments.

    Args:
        masks: category id and mask bool [H,W] of the training masks, at least one, none empty.
        config: perturbation of the training masks, number of training steps, number of branches.
        seed: seed of weights, noise and perturbation.
    """

    def __init__(self, masks: Sequence[tuple[int, Mask]], *, config: MaskConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._classes = sorted({category_id for category_id, _ in masks})
        crops = sorted(
            ((category_id, cropped(mask)) for category_id, mask in masks),
            key=lambda item: size_of(item[1], config.severity_by),
        )
        self._masks = [(mask, wish_of(category_id, mask, branches_of(mask))) for category_id, mask in crops]
        width = 4 * WIDTHS[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DModel(
                sample_size=SIDE_PX // FOLD,
                in_channels=FOLD**2,
                out_channels=FOLD**2,
                block_out_channels=WIDTHS,
                layers_per_block=1,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                norm_num_groups=8,
                attention_head_dim=32,
                class_embed_type="identity",
            )
            wish = nn.Sequential(nn.Linear(len(self._classes) + 3, width), nn.SiLU(), nn.Linear(width, width))
        self._network = nn.ModuleDict({"unet": unet, "wish": wish}).to(memory_format=torch.channels_last).eval()
        self._scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=True,
        )
        own = [on_canvas(mask) > 0 for mask, _ in self._masks]
        turned = [np.rot90(mask, quarter)[:, ::mirror] for mask in own for quarter in range(4) for mirror in (1, -1)]
        self._own = np.stack([mask.ravel() for mask in turned])

    def learn(self, out: Path) -> Work[str]:
        """Train the model and write `model.safetensors` and `log.jsonl` to `out`.

        Training resumes from a checkpoint found there.

        Returns:
            The digest of the weights.

        Raises:
            StageError: the loss is not finite, or `out` cannot be written.
        """
        own = self._config.diffusion
        training = TrainingConfig(
            num_steps=own.num_steps,
            batch_size=own.batch_size,
            optimizer="muon",
            learning_rate=own.learning_rate,
            checkpoint_every=200,
        )
        variants = [
            (changed, wish.category_id, wish.branches)
            for number, (mask, wish) in enumerate(self._masks)
            for seed in np.random.default_rng([94, self._seed, number]).integers(2**31, size=VARIANTS).tolist()
            if (changed := perturb(mask, seed=seed, config=self._config)).sum() >= self._config.min_area_px
        ] or [(mask, wish.category_id, wish.branches) for mask, wish in self._masks]
        targets = torch.from_numpy(np.stack([on_canvas(mask) for mask, _, _ in variants]))
        wishes = torch.stack(
            [self._network_input(wish_of(category_id, mask, branches)) for mask, category_id, branches in variants]
        )
        schedule = NoiseSchedule(self._scheduler, "cpu")

        def batch_of(index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            generator = generator_of(self._seed, "masks", index)
            rows = torch.randint(len(targets), (own.batch_size,), generator=generator)
            clean = pixel_unshuffle(targets[rows][:, None], FOLD)
            noise = torch.randn(clean.shape, generator=generator)
            timesteps = stratified_timesteps(own.batch_size, schedule.num_timesteps, generator)
            return clean, noise, timesteps, wishes[rows]

        def loss_of(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
            clean, noise, timesteps, told = batch
            noisy, target = schedule.add(clean, noise, timesteps)
            return (self._predict(noisy, timesteps, told) - target).square().mean()

        self._network.train()
        learned = hashlib.sha256(targets.numpy().tobytes() + wishes.numpy().tobytes()).hexdigest()
        recipe = digest_json({"masks": learned, "training": training.model_dump(mode="json"), "seed": self._seed})
        parameters = dict(self._network.named_parameters())
        yield from train(
            parameters,
            batch_of,
            loss_of,
            config=training,
            checkpoint=out / "checkpoint",
            recipe=recipe,
            log=out / "log.jsonl",
        )
        self._network.eval()
        write_tensors(out / MODEL_FILE, {name: value.detach() for name, value in parameters.items()})
        remove_checkpoint(out / "checkpoint")
        return digest_file(out / MODEL_FILE)

    def load(self, path: Path) -> None:
        """Load weights that were trained on the same masks.

        Raises:
            WeightsError: they cannot be read, or belong to another model.
        """
        try:
            self._network.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError):
            raise WeightsError(path, "was not trained on these masks", "run the stage `learn-masks` again") from None

    def draw(self, category_id: int, *, seed: int, severity: tuple[float, float] = (0.0, 1.0)) -> Mask:
        """Draw a new mask of a class; a pure function of its arguments and the weights.

        Args:
            category_id: a class with at least one training mask.
            seed: seed of everything drawn.
            severity: quantiles of the training masks' sizes that the size lies between.

        Returns:
            bool [h,w], cropped to its box, one piece, not empty.
        """
        rng = np.random.default_rng([93, seed])
        own = [(mask, wish) for mask, wish in self._masks if wish.category_id == category_id]
        mask, like = own[at_quantile(len(own), severity, rng)]
        wish = self._wish_like(like, rng)
        drawn: list[tuple[bool, float, Mask]] = []
        for _ in range(MAX_TRIES):
            canvases = self._sample(wish, [int(rng.integers(2**31)) for _ in range(CANDIDATES)])
            masks = [found for canvas in canvases if (found := from_canvas(canvas, wish.length_px)) is not None]
            drawn += [
                (self._likeness(on_canvas(found) > 0) > MAX_COPY_IOU, miss(found, wish), found) for found in masks
            ]
            if any(not is_copy for is_copy, _, _ in drawn):
                break
        # if the model draws nothing usable, a perturbed training mask is returned
        return min(drawn, key=lambda item: item[:2])[2] if drawn else perturb(mask, seed=seed, config=self._config)

    def _wish_like(self, like: Wish, rng: np.random.Generator) -> Wish:
        length = max(3.0, like.length_px * float(np.exp(SIZE_JITTER * rng.standard_normal())))
        fullness = min(1.0, like.fullness * float(2 ** (FULLNESS_JITTER * rng.standard_normal())))
        asked = self._config.num_branches
        branches = like.branches if asked is None else float(asked)
        return Wish(category_id=like.category_id, length_px=length, fullness=fullness, branches=branches)

    @torch.no_grad()
    def _sample(self, wish: Wish, seeds: Sequence[int]) -> list[NDArray[np.float32]]:
        scheduler: Any = DDIMScheduler.from_config(self._scheduler.config)
        scheduler.set_timesteps(SAMPLE_STEPS)
        shape = (FOLD**2, SIDE_PX // FOLD, SIDE_PX // FOLD)
        x = torch.stack([torch.randn(shape, generator=generator_of(self._seed, "mask", seed)) for seed in seeds])
        told = self._network_input(wish)[None].expand(len(seeds), -1)
        for timestep in scheduler.timesteps:
            x = scheduler.step(self._predict(x, timestep, told), timestep, x).prev_sample
        return list(pixel_shuffle(x, FOLD)[:, 0].numpy())

    def _predict(self, noisy: Tensor, timesteps: Tensor, told: Tensor) -> Tensor:
        return self._network["unet"](noisy, timesteps, class_labels=self._network["wish"](told)).sample

    def _network_input(self, wish: Wish) -> Tensor:
        """Return a request as the network's input, float32 [K+3]."""
        one_hot = [1.0 if category_id == wish.category_id else 0.0 for category_id in self._classes]
        size, fullness = np.log2(wish.length_px / REFERENCE_PX), np.log2(wish.fullness) / 2 + 1
        return torch.tensor([*one_hot, float(size), float(fullness), wish.branches / MANY_BRANCHES])

    def _likeness(self, canvas: Mask) -> float:
        """Return the highest IoU with any training mask on the canvas, over mirrorings and quarter turns."""
        flat = canvas.ravel()
        shared = (self._own & flat).sum(axis=1)
        return float((shared / np.maximum((self._own | flat).sum(axis=1), 1)).max())


def branches_of(mask: Mask) -> float:
    """Return the number of branches of a mask's skeleton, 0 for a blob."""
    shape = measure(mask)
    return float(len(shape.branches)) if isinstance(shape, LineShape) else 0.0


def wish_of(category_id: int, mask: Mask, branches: float) -> Wish:
    """Return the request that a mask bool [h,w], cropped to its box, matches exactly."""
    length = float(max(mask.shape))
    return Wish(category_id=category_id, length_px=length, fullness=float(mask.sum()) / length**2, branches=branches)


def miss(mask: Mask, wish: Wish) -> float:
    """Return the distance of a mask from a request: doublings of area, plus `BRANCH_PENALTY` for each branch."""
    found = wish_of(wish.category_id, mask, branches_of(mask))
    area = abs(np.log2(found.fullness * found.length_px**2) - np.log2(wish.fullness * wish.length_px**2))
    return float(area) + BRANCH_PENALTY * abs(found.branches - wish.branches)
