"""Pretrains the embedded base and its companions: corpus, autoencoder, prior, control network, encoder."""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline

from defectory.drawing import contact_sheet
from defectory.engine.backbones.files import write_digests
from defectory.engine.backbones.parts import load_controlnet, quiet
from defectory.engine.backbones.sd1.model import StableDiffusion, load_stable_diffusion
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.training.events import Validated
from defectory.events import Work
from defectory.files import write_json
from defectory.folders.marker import folder_is_whole
from defectory.folders.swap import atomic_folder
from defectory.images.save import save_png
from defectory.pretraining.config import PretrainConfig, ScoreConfig
from defectory.pretraining.control import GeometryOf, train_control
from defectory.pretraining.corpus import Corpus, make_corpus
from defectory.pretraining.diffusion import (
    LatentCorpus,
    PriorModel,
    build_scheduler,
    cache_latents,
    make_tokenizer,
    train_prior,
)
from defectory.pretraining.encoder import train_encoder
from defectory.pretraining.loop import claim
from defectory.pretraining.score import GRID_CAPTIONS, draw_captions
from defectory.pretraining.vae import build_vae, train_vae

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in the work folder, with one folder per stage."""
NUM_TONE_WORDS = 3
"""Words before the material in a caption: lightness, contrast and colour."""


def pretrain(
    config: PretrainConfig, *, work: Path, base_out: Path, encoder_out: Path | None, geometry_of: GeometryOf
) -> Work[None]:
    """Pretrain, and write the base folder and the encoder folder.

    The base is in Stable Diffusion layout, fp16, with `controlnet/` and `digests.json`.

    Args:
        config: the recipe.
        work: folder of corpus, cached latents, checkpoints, `held_out.json` and grids of samples; a second call with
            the same recipe resumes from it.
        base_out: base folder, replaced when everything is trained.
        encoder_out: encoder folder, likewise; None leaves the encoder out.
        geometry_of: the geometry part of driver extraction.

    Yields:
        Progress and Notice, with the stage's name.

    Raises:
        StageError: `work` belongs to another recipe.
    """
    claim(work, config.model_dump(mode="json"))
    yield from _recorded(
        _stages(config, work=work, base_out=base_out, encoder_out=encoder_out, geometry_of=geometry_of),
        work / "held_out.json",
    )


def _stages(
    config: PretrainConfig, *, work: Path, base_out: Path, encoder_out: Path | None, geometry_of: GeometryOf
) -> Work[None]:
    corpus = make_corpus(
        work / "corpus",
        num_images=config.num_images + config.num_held_out,
        tile_px=config.tile_px,
        seed=config.seed,
        num_workers=config.num_workers,
    )
    start = None if config.start is None else load_stable_diffusion(Path(config.start))
    vae = yield from _autoencoder(config, corpus, work=work, start=start)
    tokenizer = make_tokenizer(config, corpus) if start is None else start.tokenizer
    yield from cache_latents(config, corpus, vae, work / "latents.safetensors")
    data = LatentCorpus(config, corpus, tokenizer, cache=work / "latents.safetensors")
    prior = yield from train_prior(
        config,
        data,
        tokenizer,
        checkpoint=work / CHECKPOINTS / "diffusion",
        start=None if start is None else PriorModel(start.unet, start.text_encoder),
        draw=_grid_drawer(vae, tokenizer, work / "samples", cell_px=2 * config.tile_px),
    )
    control = yield from train_control(
        config,
        data,
        prior,
        geometry_of,
        checkpoint=work / CHECKPOINTS / "control",
        start=None if config.start is None else load_controlnet(Path(config.start) / "controlnet"),
    )
    if encoder_out is not None:
        yield from train_encoder(config, corpus, checkpoint=work / CHECKPOINTS / "encoder", out=encoder_out)
    write_base(base_out, vae=vae, prior=prior, tokenizer=tokenizer, control=control)


def _autoencoder(
    config: PretrainConfig, corpus: Corpus, *, work: Path, start: StableDiffusion | None
) -> Work[AutoencoderKL]:
    """Train the autoencoder, or load it from `config.start` or an earlier call; return it frozen."""
    vae = build_vae(config).to(config.device)
    if start is not None:
        _copy_vae(start.vae, vae)
    elif folder_is_whole(work / "vae", kind="base"):
        # only its values: the loaded model would write this machine's path into the base
        _copy_vae(AutoencoderKL.from_pretrained(work / "vae", local_files_only=True), vae)
    else:
        vae = yield from train_vae(config, corpus, checkpoint=work / CHECKPOINTS / "vae")
        with atomic_folder(work / "vae", kind="base") as folder:
            vae.save_pretrained(folder)
    return vae.requires_grad_(False)


def _grid_drawer(
    vae: AutoencoderKL, tokenizer: Any, folder: Path, *, cell_px: int
) -> Callable[[PriorModel, int], None]:
    """Return a function that draws a grid of samples after a number of steps."""

    def draw(model: PriorModel, step: int) -> None:
        models = StableDiffusion(
            unet=model.unet, vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer, scheduler=build_scheduler()
        )
        drawn = draw_captions(SamplingModels(backbone=models), GRID_CAPTIONS, config=ScoreConfig())
        images = [image for batch in drawn for image in batch]
        parts = [caption.removeprefix("a ").split(" surface") for caption in GRID_CAPTIONS]
        labels = [" ".join(head.split()[NUM_TONE_WORDS:]) + tail.replace(" with a ", " ") for head, tail in parts]
        save_png(folder / f"step-{step:06d}.png", contact_sheet(images, columns=4, labels=labels, cell_px=cell_px))

    return draw


def _recorded(stages: Work[None], path: Path) -> Work[None]:
    """Write the held-out losses that stages report to a JSON file, by stage and step."""
    checks: dict[str, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError):
        checks = dict(json.loads(path.read_bytes()))
    with contextlib.closing(stages):
        for event in stages:
            if isinstance(event, Validated):
                checks.setdefault(event.stage, {})[str(event.step)] = event.held_out_loss
                write_json(path, checks)
            yield event


def _copy_vae(source: AutoencoderKL, target: AutoencoderKL) -> None:
    target.load_state_dict(source.state_dict())
    target.register_to_config(scaling_factor=float(source.config["scaling_factor"]))


def write_base(
    out: Path, *, vae: AutoencoderKL, prior: PriorModel, tokenizer: Any, control: ControlNetModel | None
) -> None:
    """Write a base folder in Stable Diffusion layout, fp16 safetensors, with the digest of every file."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=prior.text_encoder,
        tokenizer=tokenizer,
        unet=prior.unet,
        scheduler=build_scheduler(),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    # padding and truncation of the last call do not belong to the vocabulary
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    with quiet(), atomic_folder(out, kind="base") as folder:
        half = pipeline.to("cpu", torch.float16)
        half.save_pretrained(folder, safe_serialization=True)
        if control is not None:
            control.to("cpu", torch.float16).save_pretrained(folder / "controlnet")
        for path in folder.rglob("*.safetensors"):
            path.chmod(0o644)  # safetensors are written readable only for their owner
        write_digests(folder)
