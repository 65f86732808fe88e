"""Both phases and synthesis at the size of Stable Diffusion 1.5 (random weights), beside diffusers' own recipes.

At equal batch, precision and resolution: steps or images per second, peak memory, and the share of the machine's own
matrix peak. Phase 1 is compared with diffusers' `train_dreambooth` step, phase 2 with its `train_controlnet` step,
drafts with `StableDiffusionControlNetPipeline`. The denoiser's forward pass is also timed eager, channels-last and
compiled. One command of under ten minutes on a GPU: `python bench/gpu.py --out docs/results/gpu.md`. `--base embedded`,
or the path of a base, takes that in place of random weights of Stable Diffusion's size.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from defectory.artifacts.weights import Concept
from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.condition.config import ConditionConfig
from defectory.condition.learn import learn_condition
from defectory.condition.networks.controlnet import ControlNet
from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver
from defectory.engine.backbones.known import embedded_folder, resolve_base
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.save import save_base_like
from defectory.engine.backbones.workload import BaseWorkload, base_workload
from defectory.engine.precision import autocast, uses_bf16
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.data import TrainingTile
from defectory.events import Progress
from defectory.files import digest_folder
from defectory.memory import PeakMemory

PROMPT = "an image of a sks with a crack"
WARM_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one way to do the work takes: work per second, peak GB, and multiply-adds of one unit of work."""

    what: str
    who: str
    per_second: float
    peak_gb: float
    multiply_adds: float
    unit: str


class Peak:
    """Peak memory in GB: of the GPU, or of this process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, PeakMemory()
        self.gb = 0.0

    def __enter__(self) -> Peak:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._process.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            self.gb = torch.cuda.max_memory_allocated(self._device) / 1e9
        else:
            self._process.__exit__(*error)
            self.gb = self._process.gb


def write_base(folder: Path, base: str | None) -> Path:
    """Copy a base to a folder, or write one of Stable Diffusion 1.5's size with random weights."""
    if base is not None:
        save_base_like(resolve_base(base), folder, replaced={})
        return folder
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from defectory.engine.backbones.parts import load_tokenizer
    from defectory.stages.parts.estimate.preset_needs import TEXT, UNET, VAE

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**UNET)
    vae: Any = AutoencoderKL(**VAE)
    pipeline: Any = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        tokenizer=load_tokenizer(embedded_folder() / "tokenizer"),
        scheduler=PNDMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
        ),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiles_of(count: int, side_px: int) -> list[TrainingTile]:
    """Make tiles with a defect each."""
    random, tiles = np.random.default_rng(0), list[TrainingTile]()
    for number in range(count):
        image = random.integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
        mask = np.zeros((side_px, side_px), dtype=bool)
        mask[side_px // 4 : side_px // 2, side_px // 3 : side_px // 2] = True
        tiles.append(
            TrainingTile(
                id=str(number), image=image, instances=((1, mask),), class_names=("crack",), valid_hw=(side_px, side_px)
            )
        )
    return tiles


def seconds_per_step(steps: Iterator[object], num_steps: int, device: torch.device) -> float:
    """Time steps after some to warm up; the median."""
    times: list[float] = []
    for number, _ in enumerate(steps):
        synchronize(device)
        times.append(time.perf_counter())
        if number >= WARM_STEPS + num_steps:
            break
    return statistics.median(np.diff(times[WARM_STEPS:]).tolist())


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeated(action: Callable[[], object]) -> Iterator[object]:
    """Do something again and again."""
    while True:
        yield action()


def dtype_on(device: torch.device | str) -> torch.dtype:
    """Return what both sides compute in: bf16 where the device has instructions for it."""
    return torch.bfloat16 if uses_bf16("auto", device) else torch.float32


def training_of(arguments: argparse.Namespace) -> TrainingConfig:
    """Return the settings that both sides train with: AdamW, no average, bf16 where the device has it."""
    return TrainingConfig(
        num_steps=WARM_STEPS + arguments.steps + 4,
        batch_size=arguments.batch_size,
        ema_decay=None,
        variants_per_image=1,
        gradient_checkpointing=arguments.gradient_checkpointing,
        checkpoint_every=100_000,
        validate_every=100_000,
    )


def our_concept(base: Path, tiles: list[TrainingTile], out: Path, arguments: argparse.Namespace) -> Iterator[object]:
    """Yield after each step of phase 1."""
    config = ConceptConfig(training=training_of(arguments), prior_loss_weight=0.0, train_text_encoder=False)
    for event in learn_concept(tiles, base=base, config=config, seed=0, out=out, device=arguments.device):
        if isinstance(event, Progress) and event.note.startswith("loss"):
            yield event


def our_condition(
    concept: Path, tiles: list[TrainingTile], out: Path, arguments: argparse.Namespace
) -> Iterator[object]:
    """Yield after each step of phase 2."""

    def make_driver(image: Any, instances: Any, valid_hw: Any) -> Any:
        return extract_driver(image, instances, num_classes=1, config=DriverConfig(), valid_hw=valid_hw)

    for event in learn_condition(
        tiles,
        concept=concept,
        config=ConditionConfig(training=training_of(arguments), init="copy", defect_free_share=0.0),
        make_driver=make_driver,
        driver_digest="bench",
        seed=0,
        out=out,
        device=arguments.device,
    ):
        if isinstance(event, Progress) and event.note.startswith("loss"):
            yield event


def new_control(unet: Any, vae: Any) -> Any:
    """Copy a UNet's encoder as a control network whose drivers come down to the latents' size."""
    from diffusers import ControlNetModel

    widths, halvings = (16, 32, 96, 256), len(vae.config.block_out_channels) - 1
    channels = widths if halvings == 3 else (*widths[:halvings], 64)
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)


class Recipe:
    """A training step as diffusers' example scripts write it, which encode the images of each batch anew.

    With gradient checkpointing and 32-bit AdamW as ours; autocast as `accelerate` does it.
    """

    def __init__(self, base: Path, arguments: argparse.Namespace, *, with_control: bool) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        self.device = torch.device(arguments.device)
        dtype = dtype_on(self.device)
        self.unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet", local_files_only=True)
        self.vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae", local_files_only=True)
        text: Any = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", local_files_only=True)
        tokenizer: Any = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", local_files_only=True)
        self.scheduler: Any = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.control: Any = new_control(self.unet, self.vae) if with_control else None
        trained: Any = self.control if with_control else self.unet
        for frozen in (self.vae, text, *([self.unet] if with_control else [])):
            frozen.requires_grad_(False).to(self.device, dtype)
        trained.to(self.device).train()
        if arguments.gradient_checkpointing:
            for network in (self.unet, self.control):
                if network is not None:
                    network.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6)
        self.trained = trained
        ids = tokenizer(
            [PROMPT] * arguments.batch_size,
            padding="max_length",
            truncation=True,
            max_length=int(text.config.max_position_embeddings),
            return_tensors="pt",
        ).input_ids.to(self.device)
        with torch.no_grad():
            self.context = text(ids).last_hidden_state
        side = arguments.tile_px
        self.pixels = torch.rand(arguments.batch_size, 3, side, side, device=self.device, dtype=dtype) * 2 - 1
        self.drivers = torch.rand(arguments.batch_size, 3, side, side, device=self.device, dtype=dtype)

    def step(self) -> Tensor:
        """Take one step."""
        with torch.no_grad():
            latents = self.vae.encode(self.pixels).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        given: dict[str, Any] = {}
        with autocast("auto", self.device):
            if self.control is not None:
                down, middle = self.control(
                    noisy,
                    timesteps,
                    encoder_hidden_states=self.context,
                    controlnet_cond=self.drivers,
                    return_dict=False,
                )
                given = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            predicted = self.unet(noisy, timesteps, self.context, **given).sample
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        loss = nn.functional.mse_loss(predicted.float(), target.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def their_drafts(base: Path, arguments: argparse.Namespace) -> Callable[[], object]:
    """Return a function that draws a batch with diffusers' pipeline."""
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionControlNetPipeline,
        UNet2DConditionModel,
    )

    unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet", local_files_only=True)
    vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae", local_files_only=True)
    pipeline: Any = StableDiffusionControlNetPipeline.from_pretrained(
        base, unet=unet, controlnet=new_control(unet, vae), vae=vae, safety_checker=None, local_files_only=True
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.to(arguments.device, dtype_on(arguments.device)).set_progress_bar_config(disable=True)
    driver = torch.rand(arguments.batch_size, 3, arguments.tile_px, arguments.tile_px)
    return lambda: pipeline(
        [PROMPT] * arguments.batch_size,
        image=driver,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=1.0,
        output_type="np",
    )


def our_drafts(base: Path, arguments: argparse.Namespace) -> Callable[[], object]:
    """Return a function that draws a batch as a run does, without guidance."""
    backbone = load_base(base, arguments.device)
    network = ControlNet.start(backbone, init="copy", seed=0)
    models = for_sampling(backbone, network)
    if uses_bf16("auto", arguments.device):
        models = models.in_bf16()
    driver = np.random.default_rng(0).integers(0, 255, (arguments.tile_px, arguments.tile_px, 3), dtype=np.uint8)
    count = arguments.batch_size
    conditions = Conditions(prompts=[PROMPT] * count, drivers=[driver] * count)
    sampler = Sampler(scheduler="dpm-solver", num_inference_steps=arguments.num_inference_steps, mixed_precision="auto")
    return lambda: sample_images(models, conditions, seeds=list(range(count)), sampler=sampler)


def denoiser_modes(base: Path, arguments: argparse.Namespace, work: BaseWorkload) -> Iterator[Row]:
    """Time the denoiser's forward pass eager, channels-last, and compiled."""
    device = torch.device(arguments.device)
    for mode in ("eager", "channels-last", "channels-last, compiled"):
        backbone = load_base(base, device)
        unet: Any = backbone.denoiser
        context = backbone.encode_prompts([PROMPT] * arguments.batch_size)
        side = arguments.tile_px // backbone.latent_factor
        x = torch.randn(arguments.batch_size, backbone.latent_channels, side, side, device=device)
        timesteps = torch.full((arguments.batch_size,), 500, device=device)
        if mode != "eager":
            unet.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        forward: Any = torch.compile(unet) if "compiled" in mode else unet

        def action(
            forward: Any = forward, x: Tensor = x, context: Any = context, timesteps: Tensor = timesteps
        ) -> object:
            with torch.no_grad(), autocast("auto", device):
                return forward(x, timesteps, context.tokens).sample

        with Peak(device) as peak:
            seconds = seconds_per_step(repeated(action), arguments.steps, device)
        per_image = arguments.batch_size / seconds
        yield Row(
            what="denoiser, forward",
            who=mode,
            per_second=per_image,
            peak_gb=peak.gb,
            unit="images",
            multiply_adds=work.denoiser.multiply_adds,
        )


def matrix_peak(device: torch.device) -> float:
    """Measure multiply-adds per second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype_on(device)) for _ in range(2))
    return side**3 / seconds_per_step(repeated(lambda: a @ b), 10, device)


def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Measure everything, one after the other."""
    device = torch.device(arguments.device)
    base = write_base(folder / "base", arguments.base)
    work = base_workload(base, arguments.tile_px)
    tiles = tiles_of(2 * arguments.batch_size, arguments.tile_px)
    once_more = 4 if arguments.gradient_checkpointing else 3
    of_concept = once_more * work.denoiser.multiply_adds
    of_condition = once_more * (work.control.multiply_adds) + work.denoiser.multiply_adds + 2 * work.upper.multiply_adds
    digest = digest_folder(base)
    Concept(
        method="dreambooth",
        instance_token="sks",
        class_noun="surface",
        tone_words=True,
        base_digest=digest,
        weights_digest=digest,
    ).save(folder / "concept.json")
    ways: list[tuple[str, str, Callable[[], Iterator[object]], float, str]] = [
        ("phase 1", "Defectory", lambda: our_concept(base, tiles, folder / "concept", arguments), of_concept, "tiles"),
        (
            "phase 1",
            "diffusers",
            lambda: repeated(Recipe(base, arguments, with_control=False).step),
            of_concept,
            "tiles",
        ),
        (
            "phase 2",
            "Defectory",
            lambda: our_condition(folder, tiles, folder / "control", arguments),
            of_condition,
            "tiles",
        ),
        (
            "phase 2",
            "diffusers",
            lambda: repeated(Recipe(base, arguments, with_control=True).step),
            of_condition,
            "tiles",
        ),
    ]
    for what, who, steps, multiply_adds, unit in ways:
        with Peak(device) as peak:
            running = steps()
            seconds = seconds_per_step(running, arguments.steps, device)
            del running
        yield Row(
            what=what,
            who=who,
            per_second=arguments.batch_size / seconds,
            peak_gb=peak.gb,
            unit=unit,
            multiply_adds=multiply_adds,
        )
    per_draft = (
        arguments.num_inference_steps * (work.denoiser + work.control).multiply_adds + work.decoder.multiply_adds
    )
    for who, make in (("Defectory", our_drafts), ("diffusers", their_drafts)):
        with Peak(device) as peak:
            draw = make(base, arguments)
            seconds = seconds_per_step(repeated(draw), max(2, arguments.steps // 5), device)
            del draw
        yield Row(
            what=f"drafts, {arguments.num_inference_steps} steps",
            who=who,
            per_second=arguments.batch_size / seconds,
            peak_gb=peak.gb,
            unit="images",
            multiply_adds=per_draft,
        )
    yield from denoiser_modes(base, arguments, work)


def table(rows: list[Row], arguments: argparse.Namespace, peak: float) -> str:
    """Format the rows as a page."""
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    precision = "bf16" if uses_bf16("auto", device) else "fp32"
    size = "the size of Stable Diffusion 1.5, random weights" if arguments.base is None else f"base {arguments.base}"
    lines = [
        f"# Training and drawing on {name}",
        "",
        f"{size[:1].upper()}{size[1:]}; tiles of {arguments.tile_px} px, batches of {arguments.batch_size}, "
        f"{precision}, torch {torch.__version__}, "
        f"gradient checkpointing {'on' if arguments.gradient_checkpointing else 'off'}. "
        f"Matrix peak: {peak / 1e12:.2f} trillion multiply-adds per second in {precision}, measured. Command: "
        f"`python bench/gpu.py {' '.join(sys.argv[1:])}`.",
        "",
        "| what | who | per second | share of the matrix peak | peak memory |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.who} | {row.per_second:.2f} {row.unit} | "
        f"{row.per_second * row.multiply_adds / peak:.2f} | {row.peak_gb:.1f} GB |"
        for row in rows
    ]
    ratios: list[str] = []
    for what in dict.fromkeys(row.what for row in rows):
        speed = {row.who: row.per_second for row in rows if row.what == what}
        if "diffusers" in speed:
            ratios.append(f"{what}: {speed['Defectory'] / speed['diffusers']:.2f}")
    return "\n".join([*lines, "", f"Speed of ours over diffusers': {'; '.join(ratios)}.", ""])


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="page to write; it is printed too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--base", default=None, help="`embedded` or a path; random weights if none is given")
    return parser


def main(given: list[str] | None = None) -> int:
    """Measure, print the page, and write it."""
    arguments = options().parse_args(given)
    peak, rows = matrix_peak(torch.device(arguments.device)), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(arguments, Path(folder)):
            print(
                f"{row.what}, {row.who}: {row.per_second:.2f} {row.unit} per second, {row.peak_gb:.1f} GB", flush=True
            )
            rows.append(row)
    page = table(rows, arguments, peak)
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
