"""Configuration of base pretraining: one recipe file serves CPU and GPU."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from defectory.artifacts.config import Section
from defectory.engine.config import MixedPrecision
from defectory.engine.training.config import LoopSettings, OptimizerKind
from defectory.engine.training.schedule import Schedule
from defectory.procedural.defects import DEFECT_WORDS

PATCH_VALUES = 48
"""Values of a patch of 4x4 pixels in three colours."""
POOLING_HEADS = 64
"""Heads of the attention that pools a caption: `ControlNetModel.from_unet` knows no other number."""
MAX_DEFECT_WEIGHT = 16.0
"""Largest loss weight of a latent pixel at a defect, so that a single pixel cannot outweigh the whole image."""
FINAL_LR_SHARE = 0.02
"""Learning rate at the end of every stage, as a share of its peak."""
READ_LOSS_EVERY = 10
"""Steps between two reads of the loss from an accelerator; each read waits for it to finish."""
NUM_CONSTANTS = 4
"""Constant channels per group that hold a normalisation's scale in the patch code."""


class StageConfig(Section):
    """One training stage of the pretraining."""

    num_steps: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    optimizer: OptimizerKind = "adamw"
    """`adamw`, or `muon` for the matrices inside the networks with AdamW for the rest."""
    warmup_steps: int = Field(default=100, ge=0)
    decay_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps, at the end, in which the learning rate decays; before them it is constant."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=1e-2, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    checkpoint_every: int = Field(default=500, ge=1)

    def loop(self, *, check_every: int) -> LoopSettings:
        """Convert these settings for the training loop, with a validation every `check_every` steps."""
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
    """Check whether an autoencoder of these sizes has the channels that a patch code needs."""
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
    """Procedural images the classifier is trained on, rendered with another seed than the base's."""
    num_held_out: int = Field(default=1600, ge=8)
    """Held-out images whose captions are drawn. Only images with at most one kind of defect count."""
    num_samples: int = Field(default=1000, ge=4)
    num_workers: int = Field(default=2, ge=1)
    num_inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=5.0, ge=1)
    guidance_rescale: float = Field(default=0.7, ge=0, le=1)
    """Rescaling of guided predictions, as `Guidance.text_rescale`. Raise it if samples look overexposed."""
    judge: StageConfig = StageConfig(
        num_steps=2000, batch_size=32, learning_rate=6e-3, optimizer="muon", decay_share=0.5, ema_decay=0.99
    )


class SegmenterStartConfig(Section):
    """How a light segmenter's start is trained."""

    model: str = "light"
    """Segmenter family: `light`, `efficientnet_lite0` or `unet`."""
    num_images: int = Field(default=12000, ge=4)
    """Images to train on, taken from the start of the corpus."""
    num_steps: int = Field(default=3000, ge=2)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    validate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)


class PretrainConfig(Section):
    """Recipe of the embedded base, its control network, its encoder and the light segmenter's initial weights."""

    seed: int = 0
    start: str | None = None
    """Folder of a base of the same sizes to start from; its autoencoder and tokenizer stay unchanged. None starts from
    random weights.
    """
    device: str = "cpu"
    mixed_precision: MixedPrecision = "auto"
    compiles: bool = False
    """Compile the UNet for training; needs a compiler. On an H100 a step of 128 images is a seventh faster, and the
    first step waits 90 seconds.
    """
    tile_px: int = Field(default=128, ge=32)
    num_images: int = Field(default=48000, ge=8)
    """Procedural images in the corpus."""
    num_held_out: int = Field(default=256, ge=1)
    """Further images that no training step sees, for held-out losses."""
    num_workers: int = Field(default=2, ge=1)
    """Processes that render the corpus. The images do not depend on their number."""
    latent_channels: int = Field(default=8, ge=1)
    vae_channels: tuple[int, ...] = (32, 48, 64)
    """Channels of the autoencoder per stage. Three stages make a factor of 4, so that thin cracks survive. The
    autoencoder starts as a linear code of 4x4 patches if it has the channels for it, else from random weights.
    """
    unet_channels: tuple[int, ...] = (64, 96, 224)
    """Channels of the UNet per stage. The last stage is wide: it decides material and defect, and its channels are
    cheap on a CPU (decision 034).
    """
    text_width: int = Field(default=128, ge=8)
    text_layers: int = Field(default=2, ge=1)
    text_length: int = Field(default=32, ge=8)
    vocabulary_size: int = Field(default=768, ge=300)
    norm_groups: int = Field(default=16, ge=1)
    """Groups of the UNet's group normalisation."""
    vae_norm_groups: int = Field(default=4, ge=1)
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    short_caption_share: float = Field(default=0.3, ge=0, le=1)
    """Share of captions shortened to `an image of a ... with a ...`, the form both phases use."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    min_snr_floor: float = Field(default=1.0, ge=0, le=1)
    """Lowest loss weight of a noise level. The noisiest levels learn to follow the caption."""
    text_stages: int = Field(default=2, ge=1, le=3)
    """Stages of the UNet that read the caption, counted from the lowest resolution."""
    pools_caption: bool = True
    """Add the pooled caption to the time embedding (diffusers' `addition_embed_type`), so that every layer sees it."""
    defect_weight: float = Field(default=2.0, ge=1)
    """Loss weight of latent pixels under and next to a defect, for the base."""
    defect_share: float = Field(default=0.15, ge=0, lt=1)
    """Lowest share of an image's loss that comes from its defects and their margin, up to a weight of
    `MAX_DEFECT_WEIGHT` per pixel. Small defects would otherwise hardly count.
    """
    control_defect_weight: float = Field(default=4.0, ge=1)
    defect_margin: int = Field(default=2, ge=0)
    """Margin around a defect, in latent pixels, that gets the defect's loss weight."""
    crop_px: int = Field(default=64, ge=16)
    """Side of the crops that the UNet's first steps train on, pixels."""
    crop_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the UNet's steps, the first ones, that train on crops: more images per step at the same cost."""
    check_every: int = Field(default=500, ge=1)
    """Steps between two held-out losses of UNet and control network. The UNet draws a grid of samples with each."""
    vae: StageConfig = StageConfig(num_steps=2000, learning_rate=1.5e-3, ema_decay=0.995)
    vae_crop_px: int = Field(default=64, ge=16)
    vae_defect_weight: float = Field(default=4.0, ge=1)
    """Weight of pixels within two pixels of a defect in the reconstruction loss. Above 1, half of the crops hold a
    defect.
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

    @property
    def starts_as_patch_code(self) -> bool:
        """Return whether the autoencoder has the channels to start as a patch code."""
        return room_for_patch_code(
            self.vae_channels, latent_channels=self.latent_channels, norm_groups=self.vae_norm_groups
        )


class WordConfig(Section):
    """How a base is taught one word of the world (decision 044)."""

    word: str = "dent"
    """Defect word of the procedural world; a single token of the base's vocabulary."""
    seed: int = 44
    device: str = "cpu"
    mixed_precision: MixedPrecision = "auto"
    num_images: int = Field(default=4000, ge=8)
    """Procedural images to train on, all with defects of this word."""
    num_held_out: int = Field(default=256, ge=1)
    """Further images, for a held-out loss."""
    num_texts: int = Field(default=1000, ge=1)
    """Images of the whole procedural world whose captions stand for other texts."""
    num_workers: int = Field(default=2, ge=1)
    num_directions: int = Field(default=64, ge=1)
    """Directions of the text features that may change in cross-attention: those that other texts use least."""
    keep_weight: float = Field(default=0.0, ge=0)
    """Loss weight of the squared relative change of other texts' keys and values. At 10 they change by half a percent,
    and the word `dent` is not learned.
    """
    short_caption_share: float = Field(default=0.5, ge=0, le=1)
    defect_share: float = Field(default=0.4, ge=0, lt=1)
    """As in pretraining, but higher, since everything else in the images is known already."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    min_snr_floor: float = Field(default=1.0, ge=0, le=1)
    check_every: int = Field(default=300, ge=1)
    num_drawn: int = Field(default=16, ge=0)
    """Samples drawn before and after training, for captions of held-out images."""
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
"""Values of the recipe on an accelerator, in place of a CPU's: those the embedded base, version 3, was trained with
on an H100 in eight minutes (decision 034).
"""
