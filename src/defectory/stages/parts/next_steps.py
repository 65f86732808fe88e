"""Chooses what to do next from a run's verdict, its failures and its labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from defectory.artifacts.next_step import NextStep
from defectory.artifacts.primary_metric import LEAST_SCORE
from defectory.config.command import CommandLine
from defectory.config.project import ProjectConfig
from defectory.config.resolve import flatten, with_settings
from defectory.evaluation.verdict import MIN_SEEDS
from defectory.report.content import Signature
from defectory.runs import layout
from defectory.stages.parts.durations import Durations
from defectory.stages.parts.label_counts import Counts
from defectory.stages.parts.remedies import FAR, REJECTED, REMEDIES, TOO_STRONG, TOO_WEAK, Remedy
from defectory.stages.parts.signatures import (
    FEW_HELD_OUT,
    LOW_ACCEPTANCE,
    POOR_QUALITY,
    UNLIKE_TEST,
    WRONG_CONTRAST,
    contrast_ratios,
    kid_is_far,
)
from defectory.stages.segment import uses_synthetic

MAX_STEPS, MAX_REMEDIES = 3, 2
WITHOUT, WITH = "real", "mixed"
"""Arms that are suggested if none without, or none with synthetic data was trained."""
MAX_SEEDS = 12
"""Most seeds that are suggested; more of them take longer than labelling."""
EXPORT_FORMAT, EXPORT_FOLDER = "coco", "synthetic-coco"


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a run knows at its end.

    Attributes:
        config: of the run.
        command: how the project was opened.
        scores: of the stage `evaluate`.
        signatures: every failure signature.
        labels: number of labelled instances by subset and class.
        finished: folders of the finished stages.
        durations: times of the run's stages.
        tune_seconds: expected duration of `drivers tune`; None if it is not known.
    """

    config: ProjectConfig
    command: CommandLine
    scores: Mapping[str, Any]
    signatures: Sequence[Signature]
    labels: Counts
    finished: Collection[str]
    durations: Durations
    tune_seconds: float | None = None

    @cached_property
    def present(self) -> dict[str, Any]:
        """Return the value of every setting by dotted key."""
        return flatten(self.config.model_dump(mode="json"))

    def figure_of(self, failure: str) -> str | None:
        """Return the figure of a detected failure; None if it was not detected."""
        return next((s.figure for s in self.signatures if s.name == failure and s.detected), None)


def next_steps(of: Situation) -> list[NextStep]:
    """Return one to three steps, the most useful first.

    Remedies of detected failures come before more seeds, since seeds of a faulty run are wasted, and more labels come
    last, since they are a person's work. If the synthetic set helps, using it comes first.
    """
    outcome = of.scores["verdict"]["outcome"]
    remedies = _remedies(of)
    if outcome == "use it":
        # a gain over an arm that learnt nothing is none
        uses = [] if _has_collapsed(of) else _uses(of)
        steps = [*uses, *remedies, *_labels_like_test(of), *_labels_for_test(of)]
    elif outcome in ("do not use it", "no worse and no better"):
        better = "the better segmenter" if outcome == "do not use it" else "as good a segmenter"
        worse = f"Training without synthetic data gave {better}."
        labels = _labels_like_test(of) or _labels_for_test(of) or [_labels_for_train(of, worse)]
        steps = [*remedies[:MAX_REMEDIES], *labels]
    else:
        steps = [*remedies[:MAX_REMEDIES], *_labels_like_test(of), *_evidence(of), *_labels_for_test(of)]
    return (steps or [_labels_for_train(of, "No setting is known to help.")])[:MAX_STEPS]


def _has_collapsed(of: Situation) -> bool:
    arms, verdict = of.scores["arms"], of.scores["verdict"]
    compared = (verdict.get("reference"), verdict.get("candidate"))
    metric = verdict["metric"]
    return any(arms[arm][metric] < LEAST_SCORE[metric] for arm in compared if arm in arms)


def failures_of(of: Situation) -> dict[str, str]:
    """Return the detected failures that `REMEDIES` knows with their figures, the most urgent first.

    Few accepted drafts become their most frequent cause, drafts far from test tiles a failure of their own, and wrong
    contrast becomes its direction. If some classes are too weak and others too strong, no one setting helps.
    """
    figures = {s.name: s.figure for s in of.signatures if s.detected}
    causes = [cause for cause in of.scores["fidelity"]["rejected_by"] if cause != "not chosen"]
    sets, few = of.scores["image_sets"], of.scores["fidelity"]["accepted_share"] < LOW_ACCEPTANCE
    if POOR_QUALITY in figures and causes and few:
        figures[f"{REJECTED}{causes[0]}"] = figures.pop(POOR_QUALITY)
    elif POOR_QUALITY in figures and not few and sets is not None and kid_is_far(sets):
        figures[FAR] = figures.pop(POOR_QUALITY)
    if WRONG_CONTRAST in figures:
        _, weak, strong = contrast_ratios(of.scores["defect_contrast"])
        if not (weak and strong):
            figures[TOO_WEAK if weak else TOO_STRONG] = figures[WRONG_CONTRAST]
    return {name: figures[name] for name in REMEDIES if name in figures}


def _remedies(of: Situation) -> list[NextStep]:
    found: dict[str, NextStep] = {}
    for failure, figure in failures_of(of).items():
        remedy = next((remedy for remedy in REMEDIES[failure] if remedy.applies(of.present)), None)
        if remedy is not None:
            step = _step_of(remedy, of, figure)
            # two failures may have one remedy
            found.setdefault(step.command, step)
    return list(found.values())


def _step_of(remedy: Remedy, of: Situation, figure: str) -> NextStep:
    settings, why = remedy.settings(of.present), remedy.why.replace("{figure}", figure)
    if not settings:
        seconds = of.tune_seconds if remedy.verb == "drivers tune" else None
        return _step(of, title=remedy.title, why=why, verb=remedy.verb, seconds=seconds)
    return _run_with(of, settings, title=remedy.title, why=why)


def _run_with(of: Situation, settings: Mapping[str, Any], *, title: str, why: str) -> NextStep:
    seconds = of.durations.of_change(with_settings(of.config, settings))
    return _step(of, title=title, why=why, settings=settings, seconds=seconds)


def _step(
    of: Situation,
    *,
    title: str,
    why: str,
    verb: str = "run",
    settings: Mapping[str, Any] | None = None,
    arguments: tuple[str, ...] = (),
    seconds: float | None,
) -> NextStep:
    return NextStep(
        title=title,
        why=why,
        verb=verb,
        settings=dict(settings or {}),
        arguments=arguments,
        command=of.command.text(verb, settings=settings, arguments=arguments),
        seconds=seconds,
    )


def _uses(of: Situation) -> list[NextStep]:
    """Return the steps that use what the run made."""
    steps = [
        _step(
            of,
            title="Export the synthetic set",
            why=f"Train your segmenter on it as the arm {of.scores['verdict'].get('candidate') or WITH} does. "
            f"--format writes other formats than {EXPORT_FORMAT}.",
            verb="export",
            arguments=("--format", EXPORT_FORMAT, "--out", EXPORT_FOLDER),
            seconds=of.durations.recorded.get(layout.SYNTHETIC),
        )
    ]
    if layout.PIPELINE not in of.finished:
        title, why = "Write the pipeline", "Plain diffusers loads it, to draw further images without Defectory."
        steps.append(_step(of, title=title, why=why, verb="finalize", seconds=None))
    return steps


def _evidence(of: Situation) -> list[NextStep]:
    """Return the step that may settle an open verdict."""
    arms, seeds, verdict = of.config.segmentation.arms, of.config.segmentation.seeds, of.scores["verdict"]
    sides = {uses_synthetic(arm) for arm in arms}
    missing = [arm for arm, side in ((WITHOUT, False), (WITH, True)) if side not in sides]
    if missing:
        why = "The verdict compares arms without and with synthetic data, and only one kind was trained."
        return [_run_with(of, {"segmentation.arms": [*arms, *missing]}, title="Train the missing arms", why=why)]
    if len({uses_synthetic(arm) for arm in of.scores["arms"]}) < 2:
        # skipped, since no draft was accepted; further seeds would be skipped too
        return []
    if len(seeds) < MIN_SEEDS:
        why = f"The verdict needs {MIN_SEEDS} seeds and this run has {len(seeds)}: equal trainings differ by chance."
        return [_more_seeds(of, MIN_SEEDS, why=why)]
    more, why = verdict.get("more_needed") or {}, _why_open(verdict)
    if more.get("seeds") is not None:
        needed = len(seeds) + more["seeds"]
        why += f" If the spread stays the same, it takes {needed} seeds to tell."
        if needed <= MAX_SEEDS:
            return [_more_seeds(of, needed, why=why), _study(of, needed)]
    if _labels_for_test(of):
        return []
    if more.get("images") is not None:
        why += f" About {more['images']:,} more test images would tell."
        return [_after_labelling(of, title="Label more images for val and test", why=why)]
    return [_labels_for_train(of, why)]


def _why_open(verdict: Mapping[str, Any]) -> str:
    if verdict.get("interval") is None:
        return "The gain is not known."
    low, high = verdict["interval"]
    return f"The gain {verdict['gain']:+.3f} is within its noise ({low:+.3f} to {high:+.3f})."


def _more_seeds(of: Situation, count: int, *, why: str) -> NextStep:
    seeds = list(of.config.segmentation.seeds)
    seeds += [seed for seed in range(count + len(seeds)) if seed not in seeds][: count - len(seeds)]
    return _run_with(of, {"segmentation.seeds": seeds}, title=f"Train with {count} seeds", why=why)


def _study(of: Situation, count: int) -> NextStep:
    """Return the step that trains everything anew with each seed, which seeds of one run do not."""
    whole = of.durations.of_everything()
    return _step(
        of,
        title=f"Or find out with a study of {count} seeds",
        why="Seeds of a run share one set of drafts. A study makes everything anew with each, so that its verdict "
        "holds for other drafts too.",
        verb="study",
        settings={"study.seeds": list(range(count))},
        seconds=None if whole is None else whole * count,
    )


def _labels_like_test(of: Situation) -> list[NextStep]:
    figure = of.figure_of(UNLIKE_TEST)
    if figure is None:
        return []
    named = ", ".join(of.scores["image_sets"]["images_least_like_train"])
    why = f"Test shows surfaces that train hardly shows ({figure}), for example {named}. No setting makes up for them."
    return [_after_labelling(of, title="Label images of the surfaces that train lacks", why=why)]


def _labels_for_test(of: Situation) -> list[NextStep]:
    figure = of.figure_of(FEW_HELD_OUT)
    if figure is None:
        return []
    why = f"Scores of classes with few held-out defects are a matter of luck ({figure})."
    return [_after_labelling(of, title="Label more images for val and test", why=why)]


def _labels_for_train(of: Situation, reason: str) -> NextStep:
    counts = of.labels["train"]
    rarest = min(counts, key=lambda name: counts[name])
    title = f"Label more images, first of {rarest}" if len(counts) > 1 else "Label more images"
    return _after_labelling(of, title=title, why=f"{reason} Train has {counts[rarest]} labelled defects of {rarest}.")


def _after_labelling(of: Situation, *, title: str, why: str) -> NextStep:
    told = f"{why} Add the images to the data set (data.path), then run again."
    return _step(of, title=title, why=told, seconds=of.durations.of_everything())
