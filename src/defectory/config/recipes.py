"""Recipes of studies, as data: what each varies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from defectory.registry import Registry

LADDER = (
    "real_plain",
    "real_resampled",
    "real",
    "copy_paste",
    "procedural",
    "mixed_50",
    "mixed_75",
    "mixed_90",
    "hybrid",
)
RUNGS = ("real", "copy_paste", "mixed")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A change of settings that a study compares.

    Attributes:
        name: short, for tables; empty for the project as it is.
        settings: values by dotted key.
    """

    name: str
    settings: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())


AS_IT_IS = Variant(name="")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a study varies; the section `study` may change everything but the variants, and add to these.

    Attributes:
        summary: one line for people.
        arms: training arms.
        num_labelled: numbers of labelled training images, each a point of the study; all of them are the last point.
        variants: changes of settings; the first is what the others are compared with.
    """

    summary: str
    arms: tuple[str, ...] = RUNGS
    num_labelled: tuple[int, ...] = ()
    variants: tuple[Variant, ...] = (AS_IT_IS,)


LADDER_RECIPE = Recipe(
    summary="every rung of the ladder: what each further kind of training data gains",
    arms=(*LADDER, "synthetic", "synthetic_then_real"),
)
SCARCITY = Recipe(summary="how much labelled data is enough", num_labelled=(5, 10, 25, 50, 100))
RATIO = Recipe(
    summary="how many drafts, and which share of real images",
    arms=("real", "mixed_50", "mixed_75", "mixed_90"),
    variants=tuple(
        Variant(name=f"{count:,} drafts", settings={"synthesis.num_images": count}) for count in (100, 300, 1000, 3000)
    ),
)
ABLATION = Recipe(
    summary="what each part of the method is worth",
    arms=("real", "mixed"),
    variants=(
        AS_IT_IS,
        Variant(name="no concept", settings={"concept.method": "none"}),
        Variant(name="no prior", settings={"concept.prior_loss_weight": 0.0}),
        Variant(name="driver topology", settings={"drivers.kind": "topology"}),
        Variant(name="driver grey", settings={"drivers.kind": "grey"}),
        Variant(name="driver soft edges", settings={"drivers.kind": "soft-edges"}),
        Variant(name="control at 0.5", settings={"synthesis.controlnet_conditioning_scale": 0.5}),
        Variant(name="control at 1.5", settings={"synthesis.controlnet_conditioning_scale": 1.5}),
        Variant(
            name="no curation",
            settings={"curation.checks": [], "curation.min_fidelity": 0.0, "curation.max_stray_share": 1e6},
        ),
        Variant(name="targeted", settings={"synthesis.focus": "segmenter"}),
        Variant(name="rounds", settings={"synthesis.rounds": 3}),
        Variant(name="ignore difference", settings={"curation.ignore": ["difference"]}),
        Variant(name="ignore segmenter", settings={"curation.ignore": ["segmenter"]}),
        Variant(name="ignore both", settings={"curation.ignore": ["difference", "segmenter"]}),
    ),
)
CONCEPTS = Recipe(
    summary="how the concept is learned: DreamBooth, LoRA, a new word, both, or not at all",
    arms=("real", "mixed"),
    variants=tuple(
        Variant(name=name, settings={"concept.method": method})
        for name, method in (
            ("DreamBooth", "dreambooth"),
            ("LoRA", "lora"),
            ("Textual Inversion", "textual_inversion"),
            ("LoRA and Textual Inversion", "lora_textual_inversion"),
            ("no concept", "none"),
        )
    ),
)
OF_NETWORKS: tuple[Variant, ...] = (
    *(
        Variant(name=f"controlnet at {capacity:g}", settings={"condition.capacity": capacity})
        for capacity in (1.0, 0.5, 0.25)
    ),
    Variant(name="hypernetwork", settings={"condition.network": "hypernetwork"}),
    Variant(name="adapter", settings={"condition.network": "adapter"}),
)
NETWORKS = Recipe(
    summary="condition networks and their strength, all begun without a pretrained network",
    arms=("real", "mixed"),
    variants=tuple(
        Variant(
            name=f"{network.name}, strength {strength:g}",
            settings={
                "condition.init": "copy",
                **network.settings,
                "synthesis.controlnet_conditioning_scale": strength,
            },
        )
        for network in OF_NETWORKS
        for strength in (1.0, 0.5, 1.5)
    ),
)
DRIVERS_TIMES_SAMPLES: dict[str, object] = {
    "synthesis.num_images": 100,
    "synthesis.augmentations_per_image": 0,
    "synthesis.num_drivers": 10,
}
COMPARE = Recipe(
    summary="the method beside inpainting: 10 drivers of 10 samples each (the paper's table 3)",
    arms=("real", "mixed"),
    variants=(
        Variant(name="drivers", settings={**DRIVERS_TIMES_SAMPLES, "synthesis.mode": "full"}),
        Variant(
            name="inpainting", settings={**DRIVERS_TIMES_SAMPLES, "synthesis.mode": "inpaint", "drivers.kind": "image"}
        ),
    ),
)
TRANSFER = Recipe(summary="whether a gain holds on another data set of the same classes")

RECIPES: Registry[Recipe] = Registry(
    "recipes",
    setting="study.recipe",
    builtin={
        "ladder": "defectory.config.recipes:LADDER_RECIPE",
        "scarcity": "defectory.config.recipes:SCARCITY",
        "ratio": "defectory.config.recipes:RATIO",
        "ablation": "defectory.config.recipes:ABLATION",
        "concepts": "defectory.config.recipes:CONCEPTS",
        "networks": "defectory.config.recipes:NETWORKS",
        "compare": "defectory.config.recipes:COMPARE",
        "transfer": "defectory.config.recipes:TRANSFER",
    },
)
