"""Configuration of base pretraining: one recipe file serves CPU and GPU."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from defectory.artifacts.config import Section
from defectory.engine.training.config import LoopSettings, OptimizerKind
from defectory.engine.training.schedule import Schedule
from defectory.procedural.defects import DEFECT_WORDS

PATCH_VALUES = 48
"""Values of a patch of 4x4 pixels in three colours."""
POOLING_HEADS = 64
"""Heads of the attention that pools a caption: `ControlNetModel.from_unet` knows no other number."""
MAX_DEFECT_WEIGHT = 16.0
"""Largest loss weight of a latent pixel at a defect: a single one must not be the whole image."""
FINAL_LR_SHARE = 0.02
"""Learning rate at the end of every stage, as a share of its peak."""
READ_LOSS_EVERY = 10
"""Steps between two losses read from an accelerator, which has to finish its work for it."""
NUM_CONSTANTS = 4
"""Constant channels per group that hold a normalisation's scale in the patch code."""


class StageConfig(Section):
    """One training stage of the pretraining."""

    num_steps: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    optimizer: OptimizerKind = "adamw"
    """`adamw`, or `muon` for the matrices inside the networks and AdamW for the rest."""
    warmup_steps: int = Field(default=100, ge=0)
    decay_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps, at the end, in which the learning rate falls; before, it is constant."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=1e-2, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    checkpoint_every: int = Field(default=500, ge=1)

    def loop(self, *, check_every: int) -> LoopSettings:
        """Return what the training loop needs of these settings, with a validation every `check_every` steps."""
        schedule = Schedule(
            num_steps=self.num_steps,
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            decay_share=self.decay_share,
            final_share=FINAL_LR_SHARE,
        )
        return LoopSettings(
            schedules=(schedule,),
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay,
            checkpoint_every=self.checkpoint_every,
            validate_every=check_every,
            read_loss_every=READ_LOSS_EVERY,
        )


def room_for_patch_code(vae_channels: tuple[int, ...], *, latent_channels: int, norm_groups: int) -> bool:
    """Tell whether an autoencoder of these sizes has the channels a patch code needs."""
    signed = 2 * -(-max(latent_channels, 3) // norm_groups) + NUM_CONSTANTS
    return (
        len(vae_channels) == 3
        and vae_channels[0] >= max(12, signed * norm_groups)
        and vae_channels[1] >= PATCH_VALUES
        and vae_channels[2] >= max(PATCH_VALUES, signed * norm_groups)
        and all(count % norm_groups == 0 for count in vae_channels)
    )


class ScoreConfig(Section):
    """How a base is scored on procedural images."""

    seed: int = 7
    tile_px: int = Field(default=128, ge=32)
    num_images: int = Field(default=12000, ge=8)
    """Procedural images the classifier is trained on, of another seed than the base's."""
    num_held_out: int = Field(default=1600, ge=8)
    """Further images, whose captions are drawn; those with one kind of defect or none count."""
    num_samples: int = Field(default=1000, ge=4)
    num_workers: int = Field(default=2, ge=1)
    num_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=5.0, ge=1)
    guidance_rescale: float = Field(default=0.7, ge=0, le=1)
    """As for `Guidance.text_rescale`: guided pictures glare."""
    judge: StageConfig = StageConfig(
        num_steps=2000, batch_size=32, learning_rate=6e-3, optimizer="muon", decay_share=0.5, ema_decay=0.99
    )


class SegmenterStartConfig(Section):
    """How the light segmenter's start is trained."""

    num_images: int = Field(default=12000, ge=4)
    """The first images of the corpus."""
    num_steps: int = Field(default=3000, ge=2)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    validate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)


class PretrainConfig(Section):
    """Everything the embedded base, its control network, its encoder and the light segmenter's start depend on."""

    seed: int = 0
    start: str | None = None
    """Base folder of the same sizes whose UNet, text encoder and control network training starts from; its autoencoder
    and tokenizer are kept as they are. None starts from nothing.
    """
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "bf16"
    compiles: bool = False
    """Compile the UNet while it trains: a seventh off a step of 128 images on an H100, for a minute and a half before
    the first one; wants a compiler.
    """
    tile_px: int = Field(default=128, ge=32)
    num_images: int = Field(default=48000, ge=8)
    """Procedural images in the corpus."""
    num_held_out: int = Field(default=256, ge=1)
    """Images after the corpus, seen by no training step, for held-out figures."""
    num_workers: int = Field(default=2, ge=1)
    """Processes that render the corpus; the images do not depend on it."""
    latent_channels: int = Field(default=8, ge=1)
    vae_channels: tuple[int, ...] = (32, 48, 64)
    """Three stages: factor 4, so that thin cracks survive."""
    unet_channels: tuple[int, ...] = (64, 96, 224)
    """Wide at the lowest resolution, where material and defect are decided and a channel costs a CPU little (decision
    034).
    """
    text_width: int = Field(default=128, ge=8)
    text_layers: int = Field(default=2, ge=1)
    text_length: int = Field(default=32, ge=8)
    vocabulary_size: int = Field(default=768, ge=300)
    vae_start: Literal["patch-code", "random"] = "patch-code"
    """`patch-code`: the autoencoder begins as a linear code of 4x4 patches; small autoencoders have no room for it."""
    norm_groups: int = Field(default=16, ge=1)
    """Of the UNet."""
    vae_norm_groups: int = Field(default=4, ge=1)
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    short_caption_share: float = Field(default=0.3, ge=0, le=1)
    """Share of samples whose caption is reduced to `an image of a ... with a ...`, the form the two phases use."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    min_snr_floor: float = Field(default=1.0, ge=0, le=1)
    """Least loss weight of a noise level: at the noisiest ones the caption decides."""
    text_stages: int = Field(default=2, ge=1, le=3)
    """Stages of the UNet, from the lowest resolution, that read the caption."""
    pools_caption: bool = True
    """Add the pooled caption to the time embedding too (`addition_embed_type` of diffusers), so that every layer hears
    it.
    """
    defect_weight: float = Field(default=2.0, ge=1)
    """Loss weight of latent pixels under and next to a defect while the base trains."""
    defect_share: float = Field(default=0.15, ge=0, lt=1)
    """Least share of an image's loss that its defects and their margin have while the base trains, as far as
    `MAX_DEFECT_WEIGHT` goes: a pit is a thousandth of an image, and no loss without it.
    """
    control_defect_weight: float = Field(default=4.0, ge=1)
    control_trains_unet: bool = False
    """Let the UNet learn along with the control network, so that its decoder draws what drivers say."""
    driver_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Share of each batch without driver while the UNet learns along."""
    defect_margin: int = Field(default=2, ge=0)
    """Latent pixels around a defect that weigh as it does, in both trainings."""
    crop_px: int = Field(default=64, ge=16)
    """Side of the crops the UNet begins with."""
    crop_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the UNet's steps, the first ones, on crops: as many pixels per step, so more images, at the same cost.
    """
    check_every: int = Field(default=500, ge=1)
    """Steps of UNet and control network between two held-out losses; the UNet draws a grid of samples with each."""
    vae: StageConfig = StageConfig(num_steps=2000, learning_rate=1.5e-3, ema_decay=0.995)
    vae_crop_px: int = Field(default=64, ge=16)
    vae_defect_weight: float = Field(default=4.0, ge=1)
    """Weight of defect pixels, and those within two pixels of one, in the reconstruction; above 1 half of the crops
    hold a defect.
    """
    diffusion: StageConfig = StageConfig(
        num_steps=3000, learning_rate=3e-3, optimizer="muon", decay_share=0.4, checkpoint_every=250
    )
    control: StageConfig = StageConfig(
        num_steps=600, learning_rate=4e-3, optimizer="muon", decay_share=0.5, ema_decay=0.995, checkpoint_every=250
    )
    encoder: StageConfig = StageConfig(num_steps=800, batch_size=32, learning_rate=1e-3, ema_decay=0.995)
    segmenter: SegmenterStartConfig = SegmenterStartConfig()

    @model_validator(mode="after")
    def _crops_fit(self) -> PretrainConfig:
        if self.crop_share > 0 and (self.crop_px > self.tile_px or self.crop_px % 16):
            raise ValueError(f"crop_px {self.crop_px} is not a multiple of 16 up to tile_px {self.tile_px}")
        return self

    @model_validator(mode="after")
    def _text_has_the_pooling_heads(self) -> PretrainConfig:
        if self.pools_caption and self.text_width % POOLING_HEADS:
            raise ValueError(
                f"text_width {self.text_width} is not a multiple of {POOLING_HEADS}, which pools_caption needs"
            )
        return self

    @model_validator(mode="after")
    def _room_for_the_patch_code(self) -> PretrainConfig:
        if self.vae_start == "patch-code" and not room_for_patch_code(
            self.vae_channels, latent_channels=self.latent_channels, norm_groups=self.vae_norm_groups
        ):
            raise ValueError(
                f"vae_channels {self.vae_channels} with {self.vae_norm_groups} groups are too few for vae_start "
                "patch-code"
            )
        return self


class WordConfig(Section):
    """How a base is taught one word of the world (decision 044)."""

    word: str = "dent"
    """A defect word of the world, a single token of the base's vocabulary."""
    seed: int = 44
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "bf16"
    num_images: int = Field(default=4000, ge=8)
    """Procedural images whose defects are all of the word."""
    num_held_out: int = Field(default=256, ge=1)
    """Further ones, for a held-out loss."""
    num_texts: int = Field(default=1000, ge=1)
    """Images of the whole world, whose captions show what other texts use."""
    num_workers: int = Field(default=2, ge=1)
    num_directions: int = Field(default=64, ge=1)
    """Directions of what the UNet reads, those that other texts use least, in which its reading changes."""
    keep_weight: float = Field(default=0.0, ge=0)
    """Loss weight of the squared relative change of what the UNet reads of other texts; 10 keeps them to half a percent
    and learns no dent.
    """
    short_caption_share: float = Field(default=0.5, ge=0, le=1)
    defect_share: float = Field(default=0.4, ge=0, lt=1)
    """As in pretraining, but more of it: all else in the images is known."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    min_snr_floor: float = Field(default=1.0, ge=0, le=1)
    check_every: int = Field(default=300, ge=1)
    num_drawn: int = Field(default=16, ge=0)
    """Samples drawn before and after, for captions of held-out images."""
    training: StageConfig = StageConfig(
        num_steps=1800,
        learning_rate=1e-2,
        warmup_steps=20,
        decay_share=0.5,
        ema_decay=0.99,
        weight_decay=0.0,
        checkpoint_every=100,
    )

    @field_validator("word")
    @classmethod
    def _of_the_world(cls, word: str) -> str:
        if word not in DEFECT_WORDS:
            raise ValueError(f"{word!r} is not one of {', '.join(DEFECT_WORDS)}")
        return word


ON_ACCELERATOR = (
    "num_images=96000",
    "num_workers=15",
    "crop_share=0.0",
    "check_every=1500",
    "diffusion.num_steps=2200",
    "diffusion.batch_size=512",
    "diffusion.learning_rate=0.004",
    "diffusion.warmup_steps=200",
    "diffusion.decay_share=0.7",
    "diffusion.ema_decay=0.998",
    "diffusion.checkpoint_every=500",
    "control.num_steps=500",
    "control.batch_size=128",
    "control.warmup_steps=50",
    "control.decay_share=0.7",
    "control.ema_decay=0.99",
    "control.checkpoint_every=100",
)
"""What the recipe has for an accelerator in place of a CPU's values: those the embedded base, version 3, learned with
on an H100 in eight minutes (decision 034).
"""
