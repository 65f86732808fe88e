"""How much of a concept comes from the base: KID to real tiles after phase 1, from the base and from random weights,
equal steps.

Samples are drawn from the prompts that phase 1 has for train tiles (tone words and names of defects), by the project's
sampler (guided from the class prompt, as drafts are) and once without guidance. They are grey where train tiles are, as
drafts are, and are compared with real test tiles chosen as phase 1 chooses train tiles (around defects, and half as
many without), as drawn and with the grain of their tile where they lack it (`synthesis.match_grain`). A percentile
interval of the difference over random halves of samples and of the groups that real tiles are from, which are not
independent within one, says which start wins.

Encoders are the embedded one and independent ones: a VGG-16 of random weights whose last feature maps are averaged, as
it is and whitened, since most of what random features say is one number; and the statistics of Portilla & Simoncelli
(2000), which describe a
texture so well that pictures drawn to have them look like it. What an encoder sees of real tiles alone is printed
beside it: the share of its features' variance along one direction, and how far it finds real tiles from real tiles with
their phases scrambled (clouds of the same spectrum), from real tiles smoothed by half a pixel and from train tiles. One
that does not find the clouds further than the smoothed ones judges grain, not pictures. Needs plenoptic (the extra
`bench`).

Run: `python bench/base_against_random.py PROJECT.toml [PROJECT.toml ...] --work FOLDER`. Each project names a data set
    and its
fraction; import, split and tiles are made where they are missing. Finished parts are not made again; `--rounds` repeats
phase 1 and its samples with other seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from transformers import CLIPTextModel

from defectory import Project
from defectory.artifacts.tiles import spread
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.prompts import class_prompt, condition_prompt
from defectory.engine.backbones.save import save_base_like
from defectory.engine.backbones.sd1.model import load_stable_diffusion
from defectory.engine.devices import device_of
from defectory.engine.features.encoder import embed_images, load_encoder
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.tensors import images_to_tensor
from defectory.engine.training.data import TrainingTile
from defectory.evaluation.image_metrics import kid
from defectory.files import write_json
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.stages.calibrate import SAMPLER_VERSION
from defectory.stages.parts.phase_tiles import phase_tiles
from defectory.synthesis.grain import add_grain
from projects import name_of, open_in

Features = NDArray[np.float64]

BATCH = 16
NUM_HALVES = 500
SMOOTHED_BY_PX = 0.5
NUM_WHITENED = 16
"""Directions kept of whitened features, the widest of real tiles; the smallest set has 44 tiles to find them in."""


def random_base(base: Path, out: Path, seed: int) -> Path:
    """Write a base of the same shape whose UNet and text encoder know nothing; the autoencoder is kept."""
    if not out.is_dir():
        models = load_stable_diffusion(base)
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(models.unet.config)
        save_base_like(base, out, replaced={"unet": unet, "text_encoder": CLIPTextModel(models.text_encoder.config)})
    return out


def prompt_of(project: Project, tile: TrainingTile) -> str:
    """Give the prompt that phase 1 learns a tile with."""
    config = project.config
    names = tile.class_names if config.concept.defect_words else ()
    tone = tile.tone if config.prompts.tone_words else ""
    return condition_prompt(config.prompts.instance_token, names, defect_noun=config.prompts.defect_noun, tone=tone)


def samples_of(project: Project, concept: Path, prompts: list[str], out: Path, *, guidance: float) -> list[np.ndarray]:
    """Draw one image per prompt from a concept, or read those drawn before; guidance leads away from the class
    prompt.
    """
    synthesis = project.config.synthesis
    if not (out / f"{len(prompts) - 1:04d}.png").is_file():
        models = for_sampling(load_concept(concept, device_of(project.config.device, threads=project.config.threads)))
        sampler = Sampler(
            scheduler=synthesis.scheduler,
            num_inference_steps=synthesis.num_inference_steps,
            mixed_precision=synthesis.mixed_precision,
        )
        away_from = class_prompt(project.config.prompts.class_noun)
        for start in range(0, len(prompts), synthesis.batch_size):
            some = prompts[start : start + synthesis.batch_size]
            images = sample_images(
                models,
                Conditions(prompts=some),
                seeds=range(start, start + len(some)),
                sampler=sampler,
                guidance=Guidance(driver=guidance, class_prompt=away_from),
            )
            for number, image in enumerate(images, start=start):
                save_png(out / f"{number:04d}.png", image)
    return [load_rgb(out / f"{number:04d}.png") for number in range(len(prompts))]


@torch.no_grad()
def features_of(images: list[np.ndarray], network: str, device: str) -> Features:
    """Give features float64 [N,D] of one of `ENCODERS`' networks."""
    if network == "embedded":
        return embed_images(load_encoder()[0], images)
    pixels = images_to_tensor(images)
    if network == "texture statistics":
        # their variances and correlations are of grey pixels 0 to 1; noise of a quarter of a grey level keeps those of
        # flat pictures defined
        generator = torch.Generator().manual_seed(0)
        grey = (pixels.mean(dim=1, keepdim=True) + 1) / 2
        pixels = grey + 1e-3 * torch.randn(grey.shape, generator=generator)
        statistics = texture_statistics((pixels.shape[2], pixels.shape[3]))
        return torch.cat([statistics(batch) for batch in pixels.split(BATCH)]).double().numpy()
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None).features.eval().to(device)
    return torch.cat([vgg(batch.to(device)).mean(dim=(2, 3)).cpu() for batch in pixels.split(BATCH)]).double().numpy()


def texture_statistics(size_hw: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give the statistics of Portilla & Simoncelli of grey pictures [B,1,H,W], of three scales and four orientations:
    float [B,D].
    """
    import plenoptic  # pyright: ignore[reportMissingImports]

    model = plenoptic.models.PortillaSimoncelli(size_hw, n_scales=3, n_orientations=4, spatial_corr_width=5)
    return lambda batch: model(batch)[:, 0]


def as_they_are(_: Features) -> Callable[[Features], Features]:
    """Leave features as they are."""
    return lambda features: features


def at_one_scale(real: Features) -> Callable[[Features], Features]:
    """Divide features, which have no scale of their own, by one number, after which both terms of the kernel weigh
    about the same.
    """
    unit = float(np.sqrt(np.square(real).mean()))
    return lambda features: features / unit


def standardised(real: Features) -> Callable[[Features], Features]:
    """Give each of real tiles' features that varies no mean and unit spread."""
    mean, spread_of = real.mean(axis=0), real.std(axis=0)
    varies = spread_of > 1e-6 * np.abs(real).max(axis=0)
    return lambda features: (features[:, varies] - mean[varies]) / spread_of[varies]


def whitened(real: Features) -> Callable[[Features], Features]:
    """Give real tiles' features no mean and the same spread along each of their widest directions."""
    mean = real.mean(axis=0)
    _, widths, directions = np.linalg.svd(real - mean, full_matrices=False)
    widths = widths / np.sqrt(len(real) - 1)
    return lambda features: (features - mean) @ directions[:NUM_WHITENED].T / widths[:NUM_WHITENED]


ENCODERS = {
    "embedded": {"embedded": as_they_are},
    "random VGG-16": {"random VGG-16": at_one_scale, "random VGG-16, whitened": whitened},
    "texture statistics": {"texture statistics": standardised},
}
"""Per network, the encoders made of it: what features are compared after, fitted to real tiles alone."""


def scrambled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give grey clouds of an image's spectrum and brightness."""
    grey = image.astype(np.float64).mean(axis=2)
    phases = np.angle(np.fft.rfft2(rng.standard_normal(grey.shape)))
    phases[0, 0] = 0.0
    clouds = np.fft.irfft2(np.abs(np.fft.rfft2(grey)) * np.exp(1j * phases), s=grey.shape)
    return np.clip(np.round(clouds + grey.mean() - clouds.mean()), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def harmed(real: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Give every second real tile as it is, scrambled and smoothed."""
    rng, half, sigma = np.random.default_rng(0), real[::2], (SMOOTHED_BY_PX, SMOOTHED_BY_PX, 0)
    return {
        "real": half,
        "scrambled": [scrambled(image, rng) for image in half],
        "smoothed": [np.round(gaussian_filter(image.astype(np.float32), sigma)).astype(np.uint8) for image in half],
    }


def share_of_one_direction(features: Features) -> float:
    """Give how much of the variance of features lies along one direction, 0..1."""
    variances = np.square(np.linalg.svd(features - features.mean(axis=0), compute_uv=False))
    return float(variances[0] / variances.sum())


def keep_grey(images: list[np.ndarray], tiles: list[TrainingTile]) -> list[np.ndarray]:
    """Take colour from samples where no tile has any, as drafts are finished."""
    if any((tile.image != tile.image[..., :1]).any() for tile in tiles):
        return images
    return [
        np.round(image.astype(np.float32).mean(axis=2, keepdims=True)).astype(np.uint8).repeat(3, axis=2)
        for image in images
    ]


def with_grain(images: list[np.ndarray], drawn_for: list[TrainingTile]) -> list[np.ndarray]:
    """Give samples, of one round or several, the grain of the train tile each was drawn for, where they lack it."""
    result: list[np.ndarray] = []
    for number, image in enumerate(images):
        tile = drawn_for[number % len(drawn_for)]
        result += add_grain([image], tile=tile.image, valid_hw=tile.valid_hw, seed=number)
    return result


def judge(target: Features, of: dict[str, Features], *, groups: list[str], rounds: int) -> dict[str, object]:
    """Compare what both starts drew with real tiles, on features; `groups` names that of each real tile."""
    rng = np.random.default_rng(0)
    total = len(of["base"])
    names, group_of = np.unique(groups, return_inverse=True)
    differences: list[float] = []
    for _ in range(NUM_HALVES):
        rows, half = rng.permutation(total)[: total // 2], rng.permutation(len(names))[: max(2, len(names) // 2)]
        some = np.isin(group_of, half)
        differences.append(kid(of["random"][rows], target[some]) - kid(of["base"][rows], target[some]))
    low, high = np.quantile(differences, [0.025, 0.975])
    return {
        "kid_base": kid(of["base"], target),
        "kid_random": kid(of["random"], target),
        "random_minus_base_95": [float(low), float(high)],
        "base_wins": bool(low > 0),
        "each_round": {name: [kid(own, target) for own in np.split(features, rounds)] for name, features in of.items()},
    }


def compare(
    project_file: Path, work: Path, *, num_samples: int, num_real: int, rounds: int, overrides: list[str]
) -> dict[str, object]:
    """Train both starts on one project and compare what they draw."""
    project = open_in(work / name_of(project_file, overrides), project_file, overrides).run(until="test-tiles")
    config, folder = project.config, project.run_folder
    device = device_of(config.device, threads=config.threads)
    tiles, held_out = phase_tiles(project.store, None)
    test_folder = project.store.test_tiles
    test = test_folder.tileset
    defective = spread([tile for tile in test.tiles if tile.instances], num_real)
    free = spread([tile for tile in test.tiles if not tile.instances], len(defective) // 2)
    # the names of defects are in the prompts, so that a third of all samples, too, are meant to have none
    real = [test_folder.image(tile) for tile in [*defective, *free]]
    group_of = {record.id: record.group for record in project.dataset.images}
    groups = [group_of[tile.image_id] for tile in [*defective, *free]]
    base = resolve_base(config.base)
    guided: dict[str, list[np.ndarray]] = {"base": [], "random": []}
    unguided: dict[str, list[np.ndarray]] = {"base": [], "random": []}
    drawn_for = spread(tiles, num_samples)
    drawn_for = [drawn_for[i % len(drawn_for)] for i in range(num_samples)]
    prompts = [prompt_of(project, tile) for tile in drawn_for]
    for seed in range(config.seed, config.seed + rounds):
        starts = {"base": base, "random": random_base(base, folder / f"random_base-seed{seed}", seed)}
        for name, start in starts.items():
            out = folder / f"concept-{name}-seed{seed}"
            if not (out / "concept.json").is_file():
                for _ in learn_concept(
                    tiles,
                    base=start,
                    config=config.concept,
                    prompts=config.prompts,
                    flip=config.augmentation.flip,
                    seed=seed,
                    out=out,
                    device=device,
                    held_out=held_out,
                    cache=project.store.cache,
                ):
                    pass
            sampler = f"{config.synthesis.scheduler}{config.synthesis.num_inference_steps}-rules{SAMPLER_VERSION}"
            for drawn, guidance in ((guided, config.synthesis.driver_guidance), (unguided, 1.0)):
                samples = folder / f"samples-{name}-seed{seed}-{sampler}-guided{guidance:g}"
                drawn[name] += keep_grey(samples_of(project, out, prompts, samples, guidance=guidance), tiles)
    result: dict[str, object] = {
        "project": config.name,
        "train_tiles": len(tiles),
        "real_test_tiles": len(real),
        "real_groups": len(set(groups)),
        "samples": rounds * num_samples,
        "rounds": rounds,
        "steps": config.concept.training.num_steps,
        "scheduler": config.synthesis.scheduler,
        "sampler_steps": config.synthesis.num_inference_steps,
    }
    grained = {name: with_grain(images, drawn_for) for name, images in guided.items()}
    halves = harmed(real) | {"train": [tile.image for tile in tiles if tile.instances]}
    for network, encoders in ENCODERS.items():
        features = partial(features_of, network=network, device=device)
        target, others = features(real), {name: features(images) for name, images in halves.items()}
        ways = {
            way: {start: features(own) for start, own in images.items()}
            for way, images in {"guided": guided, "guided, with grain": grained, "unguided": unguided}.items()
        }
        ways["guided against unguided random weights"] = {
            "base": ways["guided"]["base"],
            "random": ways["unguided"]["random"],
        }
        for encoder, frame_of in encoders.items():
            frame = frame_of(target)
            result[f"{encoder}, real tiles"] = {
                **{name: kid(frame(own), frame(target[1::2])) for name, own in others.items()},
                "variance_of_one_direction": share_of_one_direction(frame(target)),
            }
            for way, of in ways.items():
                result[f"{encoder}, {way}"] = judge(
                    frame(target), {start: frame(own) for start, own in of.items()}, groups=groups, rounds=rounds
                )
    return result


def main() -> None:
    """Compare on every project named and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=192, help="Drawn from each start and round.")
    parser.add_argument("--num-real", type=int, default=192, help="Real test tiles around defects, at most.")
    parser.add_argument("--rounds", type=int, default=1, help="Seeds of phase 1, counted from the project's.")
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    results = [
        compare(
            file,
            args.work,
            num_samples=args.num_samples,
            num_real=args.num_real,
            rounds=args.rounds,
            overrides=args.override,
        )
        for file in args.projects
    ]
    write_json(args.work / "base_against_random.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
