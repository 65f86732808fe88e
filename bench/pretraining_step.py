"""What each measure saves of a pretraining step: latents made once, channels-last memory, fused optimiser, plain
attention; what Muon costs; compilation beside them.

The same networks, batch and precision in every loop, timed in turn, step by step, in one process: a plain loop that
encodes its images and trains as a tutorial does, then one measure more each time, up to the loop `base pretrain` runs
by default, and compiled, as `-o compiles=true` has it. Beside the steps: how long a step's share of the procedural
images takes to make, when each
image is seen as often as the default recipe sees it. Run: `python bench/pretraining_step.py`.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from defectory.engine.backbones.known import embedded_folder
from defectory.engine.backbones.sd1.model import load_stable_diffusion
from defectory.engine.precision import autocast
from defectory.engine.tensors import images_to_tensor
from defectory.engine.training.attention import use_plain_attention
from defectory.engine.training.optimizer import NamedOptimizer
from defectory.pretraining.diffusion import Noising, build_scheduler
from defectory.procedural.world import render
from defectory.tools.pretrain import pretrain_config
from timing import seconds_of, step_options

IMAGES_LIMIT = 0.10


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a loop does beyond the plain one."""

    latents_made_once: bool = False
    channels_last: bool = False
    fused_optimiser: bool = False
    plain_attention: bool = False
    muon: bool = False
    compiled: bool = False


OURS_BEFORE_MUON = Measures(latents_made_once=True, channels_last=True, fused_optimiser=True, plain_attention=True)
LOOPS = {
    "plain": Measures(),
    "latents made once": Measures(latents_made_once=True),
    "and channels-last": Measures(latents_made_once=True, channels_last=True),
    "and fused optimiser": Measures(latents_made_once=True, channels_last=True, fused_optimiser=True),
    "and plain attention": OURS_BEFORE_MUON,
    "and Muon (ours)": replace(OURS_BEFORE_MUON, muon=True),
    "and compiled": replace(OURS_BEFORE_MUON, muon=True, compiled=True),
}


def step_of(
    measures: Measures,
    unet: UNet2DConditionModel,
    images: Tensor,
    latents: Tensor,
    context: Tensor,
    vae: torch.nn.Module,
    device: str,
) -> Callable[[], None]:
    unet = copy.deepcopy(unet).requires_grad_(True)
    if measures.channels_last:
        unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if measures.plain_attention:
        use_plain_attention(unet, num_tokens=latents[0, 0].numel(), device=torch.device(device))
    call = torch.compile(unet) if measures.compiled else unet
    optimizer = NamedOptimizer(
        dict(unet.named_parameters()),
        kind="muon" if measures.muon else "adamw",
        learning_rate=1e-5,
        weight_decay=1e-2,
        fused=measures.fused_optimiser,
    )
    noising = Noising(build_scheduler(), torch.device(device))
    size = len(images)

    def step() -> None:
        with autocast("auto", device):
            clean = latents
            if not measures.latents_made_once:
                with torch.no_grad():
                    clean = vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor  # type: ignore[operator,union-attr]
            timesteps = torch.randint(0, 1000, (size,), device=device)
            noisy, target = noising.add(clean, torch.randn_like(clean), timesteps)
            if measures.channels_last:
                noisy = noisy.contiguous(memory_format=torch.channels_last)
            predicted = call(noisy, timesteps, encoder_hidden_states=context).sample
        (predicted.float() - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> int:
    parser = step_options(__doc__, num_steps=20)
    parser.add_argument(
        "--no-compile", action="store_true", help="Leave the compiled loop out, where there is no compiler."
    )
    parser.add_argument("--base", type=Path, default=embedded_folder(), help="Base folder whose networks are timed.")
    arguments = parser.parse_args()
    device, recipe = arguments.device, pretrain_config([], device=arguments.device, seed=0)
    models = load_stable_diffusion(arguments.base, device)
    side_px = models.tile_px
    render(0, (side_px, side_px))
    began = time.perf_counter()
    pictures = [render(seed, (side_px, side_px)).image for seed in range(4 * arguments.batch_size)]
    image_s = (time.perf_counter() - began) / len(pictures)
    images = images_to_tensor(pictures[: arguments.batch_size]).to(device)
    with torch.no_grad(), autocast("auto", device):
        latents = models.vae.encode(images).latent_dist.mean.float() * models.vae.config["scaling_factor"]
    width, length = (
        int(models.unet.config["cross_attention_dim"]),
        int(models.text_encoder.config.max_position_embeddings),
    )
    context = torch.randn(arguments.batch_size, length, width, device=device)
    loops = {name: measures for name, measures in LOOPS.items() if not (measures.compiled and arguments.no_compile)}
    steps = {
        name: step_of(measures, models.unet, images, latents, context, models.vae, device)
        for name, measures in loops.items()
    }
    for step in steps.values():
        step(), step()
    rounds = [{name: seconds_of(step) for name, step in steps.items()} for _ in range(arguments.steps)]
    # whole tiles: crops see more images per step, but of the same corpus
    images_per_step = recipe.num_images / (recipe.diffusion.num_steps + recipe.control.num_steps)
    ours_s = statistics.median(r["and Muon (ours)"] for r in rounds)
    share = images_per_step * image_s / (ours_s * torch.get_num_threads())
    print(
        json.dumps(
            {
                "step_s": {name: round(statistics.median(r[name] for r in rounds), 4) for name in steps},
                "of_plain": {name: round(statistics.median(r[name] / r["plain"] for r in rounds), 4) for name in steps},
                "image_s": round(image_s, 5),
                "images_per_step": round(images_per_step, 2),
                "share_of_images": round(share, 4),
                "limit": IMAGES_LIMIT,
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "device": device,
                "threads": torch.get_num_threads(),
            }
        )
    )
    return 0 if share <= IMAGES_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
