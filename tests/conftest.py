"""Shared fixtures: a random-weight, very tiny base in Stable Diffusion layout, and a whole run with it, made once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from defectory.config.resolve import resolve
from defectory.events import StageEnded
from defectory.files import unfinished_folder_of
from defectory.memory import collect_garbage_rarely
from defectory.procedural.borescope import write_dataset
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.stages.all import run_all

collect_garbage_rarely()

TINY_TILE_PX = 32
"""Side of the tiles the tiny base is made for; its autoencoder has factor 4, so latents are 8x8."""
TINY_SIZE_HW = (64, 88)
"""Size of the images of the tiny run."""

WORDS = ("an", "image", "of", "a", "sks", "with", "and", "crack", "blowhole", "break", "industrial", "surface", "axial")


def tiny_tokenizer() -> Any:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges=list(merges), model_max_length=16
    )


def make_tiny_base(
    folder: Path,
    *,
    latent_channels: int = 4,
    prediction_type: str = "v_prediction",
    scheduler: str = "ddim",
    vae_stages: int = 3,
    with_control: bool = True,
) -> Path:
    """Write a random-weight base of about 0.1 M parameters: 32 px tiles, latents 8x8 at three autoencoder stages."""
    import torch
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer()
    # as the embedded base does, and Stable Diffusion does not
    pools_caption = prediction_type == "v_prediction"
    text_width = 64 if pools_caption else 16
    factor = 2 ** (vae_stages - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=TINY_TILE_PX // factor,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=text_width,
            addition_embed_type="text" if pools_caption else None,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * vae_stages,
            up_block_types=("UpDecoderBlock2D",) * vae_stages,
            block_out_channels=(8,) * vae_stages,
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=TINY_TILE_PX,
            mid_block_add_attention=False,
            scaling_factor=0.5,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=text_width,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                projection_dim=text_width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8,) * vae_stages)
        for name, parameter in control.named_parameters():
            if name.startswith(
                ("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")
            ):
                torch.nn.init.normal_(parameter, std=0.1)
    noise: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "steps_offset": 1,
    }
    if scheduler == "pndm":
        schedule: Any = PNDMScheduler(**noise, skip_prk_steps=True)
    else:
        zero_snr = prediction_type == "v_prediction"
        schedule = DDIMScheduler(
            **noise,
            clip_sample=False,
            rescale_betas_zero_snr=zero_snr,
            timestep_spacing="trailing" if zero_snr else "leading",
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    if with_control:
        control.save_pretrained(folder / "controlnet")
    from defectory.files import digest_file

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    (folder / "digests.json").write_text(
        json.dumps({path.relative_to(folder).as_posix(): digest_file(path) for path in files})
    )
    return folder


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in the embedded base's layout (v-prediction, factor 4, 32 px, `controlnet/`, `digests.json`); do not write
    into it.
    """
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_stable_diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in Stable Diffusion 1.5's layout (epsilon prediction, factor 8, PNDM, no control network); do not write
    into it.
    """
    folder = make_tiny_base(
        tmp_path_factory.mktemp("tiny") / "sd",
        prediction_type="epsilon",
        scheduler="pndm",
        vae_stages=4,
        with_control=False,
    )
    (folder / "digests.json").unlink()
    return folder


@pytest.fixture
def make_base() -> Callable[..., Path]:
    """`make_tiny_base`, for tests that damage a base."""
    return make_tiny_base


@pytest.fixture
def training_tiles() -> Callable[..., list[Any]]:
    """Tiles of 32x48 pixels (height x width) of two classes; every third one has no defect."""
    import numpy as np

    from defectory.engine.training.data import TrainingTile

    def make(count: int = 6, *, seed: int = 0) -> list[Any]:
        tiles: list[Any] = []
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            image = rng.integers(60, 200, (32, 48, 3)).astype(np.uint8)
            instances: list[tuple[int, Any]] = []
            if index % 3 != 2:
                mask = np.zeros((32, 48), bool)
                top, left = rng.integers(8, 16, 2)
                mask[top : top + 6, left : left + 10] = True
                image[mask] = 10
                instances.append((1 + index % 2, mask))
            names = tuple(("crack", "blowhole")[category_id - 1] for category_id, _ in instances)
            tiles.append(
                TrainingTile(
                    id=f"t{index}", image=image, instances=tuple(instances), class_names=names, valid_hw=(32, 48)
                )
            )
        return tiles

    return make


_KILL_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
{code}
def whole(out):
    began = time.monotonic()
    stage(out)
    return time.monotonic() - began
work = Path(sys.argv[1])
seconds = whole(work / "whole")
rng = random.Random(int(sys.argv[2]))
for moment in sorted(rng.uniform(0.05, 0.9) for _ in range(3)):
    child = os.fork()
    if child == 0:
        stage(work / "killed")
        os._exit(0)
    time.sleep(moment * seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
stage(work / "killed")
"""


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Processes of this one, without the helper that Python keeps once any test has started a process by `spawn`."""

    def is_helper(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return any("resource_tracker" in word for word in process.cmdline())
        return False

    return lambda: [process for process in psutil.Process().children() if not is_helper(process)]


@pytest.fixture
def kill_three_times(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Run code that defines `stage(out: Path)` once whole, and once more with three SIGKILLs at random moments.

    Gives the two output folders. All runs are on one thread of one program, so that torch is imported once.
    """

    def run(code: str, *, seed: int = 0) -> tuple[Path, Path]:
        script = tmp_path / "stage.py"
        script.write_text(_KILL_SCRIPT.format(code=textwrap.dedent(code)))
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), str(seed)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return tmp_path / "whole", tmp_path / "killed"

    return run


def tiny_settings(base: Path) -> dict[str, Any]:
    """Settings of a run that takes seconds; curation accepts all, because a random base draws nothing."""
    return {
        "name": "tiny",
        "out": "run",
        "base": str(base),
        "device": "cpu",
        "threads": 1,
        "data": {"path": "source/annotations.json"},
        "split": {"val_share": 0.2, "test_share": 0.2},
        "tiling": {"mode": "frame"},
        "concept": {
            "num_class_images": 2,
            "prior_inference_steps": 2,
            "prior_share": 0.25,
            "training": {
                "num_steps": 6,
                "batch_size": 4,
                "variants_per_image": 2,
                "checkpoint_every": 2,
                "validate_every": 3,
            },
        },
        "condition": {
            "training": {
                "num_steps": 6,
                "batch_size": 4,
                "variants_per_image": 2,
                "checkpoint_every": 2,
                "validate_every": 3,
            }
        },
        "masks": {"min_area_px": 2},
        "synthesis": {"num_images": 8, "num_inference_steps": 2, "batch_size": 3, "calibration_drafts": 2},
        "curation": {"checks": [], "min_fidelity": 0.0, "max_stray_share": 1e6},
        "segmentation": {
            "num_steps": 4,
            "batch_size": 2,
            "validate_every": 2,
            "checkpoint_every": 2,
            "model": "light",
            "input_px": 64,
            "arms": ["real", "synthetic", "synthetic_then_real"],
        },
        "evaluation": {"bootstrap_samples": 10},
    }


def open_project(folder: Path, settings: dict[str, Any], *overrides: str) -> Run:
    config = resolve(project=settings, overrides=overrides).config
    return Run(config=config, folder=folder / "run", sources=Sources(folder=folder))


@pytest.fixture(scope="session")
def open_tiny() -> Callable[..., Run]:
    """Open the project of a folder with `source/` and `run/`."""
    return open_project


class SyncRecorder:
    """What reaches the disk while files are written, and whether all of it does before a manifest vouches for it."""

    def __init__(self) -> None:
        self.synced: dict[tuple[int, int], tuple[int, int]] = {}
        """By device and inode, size and time of change when it was last synced."""
        self.unsynced: list[str] = []
        """Files that were not on disk when a manifest came to stand beside them."""
        self.vouched: set[Path] = set()
        """Folders whose manifest appeared by a rename."""

    def is_on_disk(self, path: str | Path) -> bool:
        about = Path(path).stat()
        seen = self.synced.get((about.st_dev, about.st_ino))
        return seen is not None if stat.S_ISDIR(about.st_mode) else seen == (about.st_size, about.st_mtime_ns)

    @contextmanager
    def recording(self) -> Generator[None]:
        """Record what this process syncs and renames meanwhile."""
        fsync = os.fsync

        def recorded_fsync(descriptor: int) -> None:
            fsync(descriptor)
            about = os.fstat(descriptor)
            self.synced[about.st_dev, about.st_ino] = (about.st_size, about.st_mtime_ns)

        def after_a_look(move: Callable[..., None]) -> Callable[..., None]:
            def moved(source: Any, target: Any, **options: Any) -> None:
                self._look(Path(source), Path(target))
                move(source, target, **options)

            return moved

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", recorded_fsync)
            for name in ("replace", "rename"):
                patch.setattr(os, name, after_a_look(getattr(os, name)))
            yield

    def _look(self, source: Path, target: Path) -> None:
        # a manifest is about to appear, with its folder or in one that is not still being made
        if (source / "stage.json").is_file():
            folder, place = source, target
        elif target.name == "stage.json" and unfinished_folder_of(target) is None:
            folder = place = target.parent
        else:
            return
        self.vouched.add(place)
        self.unsynced += [str(path) for path in folder.rglob("*") if path.is_file() and not self.is_on_disk(path)]


@pytest.fixture
def sync_recorder() -> SyncRecorder:
    """A recorder that has seen nothing."""
    return SyncRecorder()


@pytest.fixture(scope="session")
def tiny_run_and_its_syncs(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path
) -> tuple[tuple[Path, dict[str, Any], list[StageEnded]], SyncRecorder]:
    """The tiny run, and what reached the disk while it was made."""
    folder, recorder = tmp_path_factory.mktemp("tiny_run"), SyncRecorder()
    write_dataset(folder / "source", seed=0, num_labelled=28, num_defect_free=12, size_hw=TINY_SIZE_HW)
    settings = tiny_settings(tiny_base_folder)
    with recorder.recording():
        ended = [event for event in run_all(open_project(folder, settings)) if isinstance(event, StageEnded)]
    return (folder, settings, ended), recorder


@pytest.fixture(scope="session")
def tiny_run(
    tiny_run_and_its_syncs: tuple[tuple[Path, dict[str, Any], list[StageEnded]], SyncRecorder],
) -> tuple[Path, dict[str, Any], list[StageEnded]]:
    """Folder with `source/` and a finished `run/`, its settings, and what the run said; do not write into it."""
    return tiny_run_and_its_syncs[0]
