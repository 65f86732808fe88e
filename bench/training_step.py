"""What a phase-2 step through our loop costs, against the bare forward and backward of the same networks.

Both are timed in turn, step by step, in one process on the embedded base. Run: `python bench/training_step.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from defectory.artifacts.weights import Concept
from defectory.condition.config import ConditionConfig
from defectory.condition.learn import learn_condition
from defectory.condition.networks.controlnet import start_control
from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver
from defectory.engine.backbones.known import embedded_folder
from defectory.engine.backbones.save import save_base_like
from defectory.engine.backbones.sd1.model import load_stable_diffusion
from defectory.engine.precision import autocast
from defectory.engine.training.attention import use_plain_attention
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.data import TrainingTile
from defectory.events import Progress
from defectory.files import digest_folder
from defectory.procedural.world import render
from timing import seconds_of, step_options

LIMIT = 1.15


def tiles_of(count: int, side_px: int) -> list[TrainingTile]:
    tiles: list[TrainingTile] = []
    for seed in range(10_000):
        sample = render(seed, (side_px, side_px))
        mask = sample.class_map > 0
        if mask.any():
            tiles.append(
                TrainingTile(
                    id=str(seed),
                    image=sample.image,
                    instances=((1, mask),),
                    class_names=("crack",),
                    valid_hw=(side_px, side_px),
                )
            )
        if len(tiles) == count:
            break
    return tiles


def our_steps(
    tiles: list[TrainingTile], concept: Path, out: Path, training: TrainingConfig, device: str
) -> Iterator[None]:
    def make_driver(image, instances, valid_hw):
        return extract_driver(image, instances, num_classes=1, config=DriverConfig(), valid_hw=valid_hw)

    config = ConditionConfig(training=training)
    for event in learn_condition(
        tiles,
        concept=concept,
        config=config,
        make_driver=make_driver,
        driver_digest="bench",
        seed=0,
        out=out,
        device=device,
    ):
        if isinstance(event, Progress) and event.note.startswith("loss"):
            yield


def bare_step(batch_size: int, base: Path, device: str) -> Callable[[], None]:
    models = load_stable_diffusion(base, device)
    control = start_control(models, init="auto", seed=0).requires_grad_(True)
    side = models.tile_px // models.latent_factor
    x = torch.randn(batch_size, models.latent_channels, side, side, device=device)
    target = torch.randn_like(x)
    timesteps = torch.randint(0, 1000, (batch_size,), device=device)
    width = int(models.unet.config["cross_attention_dim"])
    context = torch.randn(batch_size, int(models.text_encoder.config.max_position_embeddings), width, device=device)
    # the same memory layout and attention as in our loop, so that only the loop's own cost is left
    use_plain_attention(control, models.unet, num_tokens=side * side, device=torch.device(device))
    driver = torch.rand(batch_size, models.tile_px, models.tile_px, 3, device=device).permute(0, 3, 1, 2)

    def step() -> None:
        with autocast("auto", device):
            down, middle = control(
                x, timesteps, encoder_hidden_states=context, controlnet_cond=driver, return_dict=False
            )
            predicted: Tensor = models.unet(
                x,
                timesteps,
                encoder_hidden_states=context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        (predicted.float() - target).square().mean().backward()
        control.zero_grad(set_to_none=True)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def main() -> int:
    arguments = step_options(__doc__, num_steps=30).parse_args()
    base = embedded_folder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_base_like(base, folder / "base", replaced={})
        digest = digest_folder(folder / "base")
        Concept(
            method="dreambooth",
            instance_token="sks",
            class_noun="surface",
            tone_words=True,
            base_digest=digest,
            weights_digest=digest,
        ).save(folder / "concept.json")
        side_px = load_stable_diffusion(base).tile_px
        training = TrainingConfig(
            num_steps=arguments.steps + 4, batch_size=arguments.batch_size, defect_weight=5.0, checkpoint_every=10_000
        )
        ours = our_steps(tiles_of(24, side_px), folder, folder / "control", training, arguments.device)
        bare = bare_step(arguments.batch_size, base, arguments.device)
        for _ in range(3):
            next(ours), bare()
        pairs = [(seconds_of(lambda: next(ours)), seconds_of(bare)) for _ in range(arguments.steps)]
        ours.close()  # type: ignore[attr-defined]
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        json.dumps(
            {
                "our_step_s": round(statistics.median(a for a, _ in pairs), 4),
                "bare_step_s": round(statistics.median(b for _, b in pairs), 4),
                "ratio": round(ratio, 4),
                "limit": LIMIT,
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "device": arguments.device,
                "threads": torch.get_num_threads(),
            }
        )
    )
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
