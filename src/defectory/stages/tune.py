"""Stage tune: choose how segmenters are trained by validation of the real arm. It opens no test image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory.artifacts.primary_metric import LEAST_SCORE, PrimaryMetric
from defectory.config.project import ProjectConfig
from defectory.events import Progress, Work
from defectory.filenames import file_name_of
from defectory.files import write_json
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.policies import AUTO, DEFAULT, POLICIES
from defectory.segmentation.tuning import MIN_VAL_INSTANCES, Trial, Tuning, choose_num_steps, choose_policy, is_stalled
from defectory.stages.parts.primary_metric import SCORES, choose_metric
from defectory.stages.parts.segmenter_images import real_images, sizing_of
from defectory.stages.parts.validation import predict, training_seed, val_records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from defectory.segmentation.data import SegmentationImage
    from defectory.segmentation.sizing import Sizing

ARM = "real"
TRIALS, TRIALS_FILE = "trials", "trials.json"
"""What an interrupted stage resumes from."""


def needs_tuning(segmentation: SegmentationConfig) -> bool:
    """Check whether validation chooses the policy or the number of steps."""
    return segmentation.augmentation == AUTO or segmentation.max_num_steps is not None


def as_tuned(segmentation: SegmentationConfig, inputs: RunStore) -> SegmentationConfig:
    """Return the settings of one training, with what the stage `tune` chose."""
    if not needs_tuning(segmentation):
        return segmentation
    tuning = inputs.tuning
    return segmentation.model_copy(update={"augmentation": tuning.augmentation, "num_steps": tuning.num_steps})


@dataclass(frozen=True, kw_only=True)
class _Material:
    """What every trial trains on, and how it is judged."""

    inputs: RunStore
    config: ProjectConfig
    device: str
    sizing: Sizing
    metric: PrimaryMetric
    images: Mapping[str, Sequence[SegmentationImage]]
    out: Path


class Tune(Stage):
    """Trains the real arm with each augmentation policy, then until validation no longer rises."""

    VERSION = 5
    name, folder = "tune", layout.TUNING
    is_resumable = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images and split."""
        return ("import", "split")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on how segmenters are trained, on what is tried, and on the seed."""
        segmentation = config.segmentation
        return {
            "segmentation": {**segmentation.of_one_training(), **segmentation.of_tuning()},
            "policies": list(_policies(segmentation)),
            "files of segmentation.weights": sources.listing(segmentation.weights),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Choose, and write every score."""
        segmentation = config.segmentation
        policy = DEFAULT if segmentation.augmentation == AUTO else segmentation.augmentation
        num_steps, reasons = segmentation.num_steps, list[str]()
        val = val_records(inputs, segmentation.max_val_images)
        num_instances = sum(not i.is_crowd for record in val for i in record.instances)
        trials: list[Trial] = []
        if num_instances < MIN_VAL_INSTANCES:
            reasons.append(
                f"validation holds {num_instances} defects, too few to choose by (at least {MIN_VAL_INSTANCES})"
            )
        else:
            material = self._material(inputs, config, out)
            if segmentation.augmentation == AUTO:
                for name in _policies(segmentation):
                    steps = segmentation.tuning_num_steps or num_steps
                    trials += yield from self._trials(material, name, steps, patience=None)
                policy, reason = choose_policy(trials, default=DEFAULT)
                reasons.append(reason)
            if segmentation.max_num_steps is not None:
                longest, patience = segmentation.max_num_steps, segmentation.patience
                long = yield from self._trials(material, policy, longest, patience=patience)
                trials += long
                steps = choose_num_steps(long, every=segmentation.validate_every, least=LEAST_SCORE[material.metric])
                told = ", ".join(f"{trial.best[1]:.3f} at step {trial.best[0]}" for trial in long)
                kept = "" if steps else ", which is next to nothing, so the number of steps stays"
                num_steps = steps or num_steps
                reasons.append(f"validation was best with {told} of at most {longest}{kept}")
        tuning = Tuning(
            augmentation=policy,
            num_steps=num_steps,
            reason="; ".join(reasons),
            num_val_instances=num_instances,
            trials=tuple(trials),
        )
        tuning.save(out / layout.TUNING_FILE)
        (out / TRIALS_FILE).unlink(missing_ok=True)
        shutil.rmtree(out / TRIALS, ignore_errors=True)
        return f"augmentation {policy}, {num_steps} steps: {tuning.reason}"

    def _material(self, inputs: RunStore, config: ProjectConfig, out: Path) -> _Material:
        from defectory.engine.devices import device_of

        segmentation = config.segmentation
        sizing = sizing_of(inputs, input_px=segmentation.input_px, scale=segmentation.scale)
        real, free = real_images(inputs, sizing, seed=config.seed, stage=self.name)
        return _Material(
            inputs=inputs,
            config=config,
            device=device_of(config.device, threads=config.threads),
            sizing=sizing,
            metric=choose_metric(inputs, segmentation).metric,
            images={"real": real, "defect_free": free},
            out=out,
        )

    def _trials(self, of: _Material, policy: str, num_steps: int, *, patience: int | None) -> Work[list[Trial]]:
        done: list[Trial] = []
        for seed in of.config.segmentation.tuning_seeds:
            trial = Trial(augmentation=policy, seed=seed, num_steps=num_steps)
            done.append((yield from _trained(of, trial, patience=patience, stage=self.name)))
        return done


def _policies(segmentation: SegmentationConfig) -> tuple[str, ...]:
    """Return the policies that are compared, the default first."""
    return POLICIES.names() if segmentation.augmentation == AUTO else ()


def _trained(of: _Material, trial: Trial, *, patience: int | None, stage: str) -> Work[Trial]:
    """Return a trial with its scores, from the notes of an interrupted stage or by training.

    Args:
        of: what it trains on.
        trial: policy, seed and steps.
        patience: validations without a rise that end the training; None trains to the end.
        stage: name for messages.
    """
    from defectory.engine.training.events import Validated

    key = file_name_of(f"{trial.augmentation}-{trial.num_steps}-{trial.seed}-{patience or 0}")
    notes = _Notes(of.out / TRIALS_FILE)
    val = notes.val_of(key)
    folder = of.out / TRIALS / key
    if not notes.is_done(key):
        with closing(_training(of, trial, folder, stage)) as work:
            for event in work:
                if isinstance(event, Validated):
                    val[event.done] = event.value
                    notes.write(key, val, is_done=False)
                    if patience is not None and is_stalled(
                        sorted(val.items()), patience=patience, least=LEAST_SCORE[of.metric]
                    ):
                        break
                if isinstance(event, Progress):
                    note = f"{trial.augmentation}, seed {trial.seed}, {event.note}"
                    yield Progress(done=event.done, total=event.total, note=note)
        notes.write(key, val, is_done=True)
        shutil.rmtree(folder, ignore_errors=True)
    return trial.model_copy(update={"val": tuple(sorted(val.items()))})


def _training(of: _Material, trial: Trial, folder: Path, stage: str) -> Work[Any]:
    from defectory.segmentation.training import train_segmenter

    inputs, segmentation, dataset = of.inputs, of.config.segmentation, of.inputs.data.dataset
    val, score = val_records(inputs, segmentation.max_val_images), SCORES[of.metric]
    weights = segmentation.weights
    return train_segmenter(
        arm=ARM,
        images=of.images,
        validate=lambda model: score(val, dataset.categories, predict(model, inputs.data, val, of.sizing.scale)),
        metric=of.metric,
        categories=dataset.categories,
        sizing=of.sizing,
        config=segmentation.model_copy(update={"augmentation": trial.augmentation, "num_steps": trial.num_steps}),
        seed=training_seed(of.config.seed, trial.seed),
        out=folder,
        device=of.device,
        weights=None if weights is None else inputs.sources.path(weights),
        value_range=dataset.value_range,
        require=lambda ids, what: inputs.split.require_training_ids(ids, stage=f"{stage}, {what}"),
    )


class _Notes:
    """The scores of trials so far, kept in the stage's folder, so that an interrupted stage repeats none.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def val_of(self, key: str) -> dict[int, float]:
        """Return the scores of a trial by step."""
        return {int(step): score for step, score in self._content.get(key, {}).get("val", [])}

    def is_done(self, key: str) -> bool:
        """Check whether a trial was trained to its end."""
        return bool(self._content.get(key, {}).get("done"))

    def write(self, key: str, val: Mapping[int, float], *, is_done: bool) -> None:
        """Note the scores of a trial."""
        self._content[key] = {"val": sorted(val.items()), "done": is_done}
        write_json(self._path, self._content)
