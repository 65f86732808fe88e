"""The steps that a report suggests, for every state of a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pytest
import typer

from defectory.cli.main import app
from defectory.config.command import CommandLine, setting_text
from defectory.config.presets import PRESETS
from defectory.config.resolve import flatten, resolve
from defectory.curation.decide import CAUSES
from defectory.drivers.leakage import Leakage
from defectory.evaluation.statistics import scores_of_seeds
from defectory.evaluation.verdict import verdict
from defectory.stages.all import stages_of
from defectory.stages.parts import remedies
from defectory.stages.parts.durations import Durations
from defectory.stages.parts.next_steps import Situation, next_steps
from defectory.stages.parts.remedies import FAR, REJECTED, REMEDIES, TOO_STRONG, TOO_WEAK
from defectory.stages.parts.signatures import (
    FEW_HELD_OUT,
    NO_GAIN,
    UNLIKE_TEST,
    WRONG_CONTRAST,
    Memorisation,
    signatures,
)

DATA = {"data": {"path": "labels.json"}}
LABELS = {"train": {"pit": 30, "burn": 9}, "val": {"pit": 8, "burn": 6}, "test": {"pit": 8, "burn": 5}}
FIDELITY = {"accepted_share": 0.8, "mean": 0.6, "shuffled": 0.02, "rejected_by": {}}
REAL = (0.30, 0.31, 0.32)
BETTER, WORSE = (0.40, 0.41, 0.43), (0.20, 0.21, 0.23)


def judge(arms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The verdict on arms as the stage `evaluate` stores it."""
    scores = scores_of_seeds({arm: [of["segm_map"] for of in own["per_seed"]] for arm, own in arms.items()})
    judged = verdict([scores], uses_synthetic={"real": False, "synthetic": True, "synthetic_then_real": True})
    return judged.model_dump(mode="json") | changes


def situation(
    *overrides: str,
    both: Sequence[float] = BETTER,
    real: Sequence[float] = REAL,
    fidelity: dict[str, Any] | None = None,
    contrast: dict[str, Any] | None = None,
    leak: float = 0.5,
    copied: float = 0.0,
    labels: dict[str, dict[str, int]] | None = None,
    image_sets: dict[str, Any] | None = None,
    preset: str | None = None,
    command: CommandLine | None = None,
    finished: Sequence[str] = ("pipeline", "synthetic"),
) -> Situation:
    """A run with a seed for each score of the arms."""
    seeds = f"segmentation.seeds={list(range(len(both)))}"
    config = resolve(project=DATA, preset=preset, overrides=[seeds, *overrides]).config
    arms = {
        arm: {"segm_map": sum(maps) / len(maps), "per_seed": [{"segm_map": value} for value in maps]}
        for arm, maps in (("real", real), ("synthetic_then_real", both))
    }
    scores = {
        "arms": arms,
        "verdict": judge(arms),
        "fidelity": FIDELITY | (fidelity or {}),
        "image_sets": image_sets,
        "defect_contrast": contrast or {},
    }
    found = signatures(
        scores,
        Leakage(auc=leak, interval=(leak - 0.1, leak + 0.1), num_defective=40, num_defect_free=40),
        Memorisation(draft_to_train=1.0, train_to_train=1.0, copied_share=copied),
        drivers=config.drivers,
        labels=labels or LABELS,
    )
    recorded = {stage.folder: 10.0 for stage in stages_of(config)}
    return Situation(
        config=config,
        command=command or CommandLine(file="part.toml"),
        scores=scores,
        signatures=found,
        labels=labels or LABELS,
        finished=finished,
        durations=Durations(config=config, recorded=recorded, stages_of=stages_of),
        tune_seconds=30.0,
    )


def commands(of: Situation) -> list[str]:
    steps = next_steps(of)
    assert 1 <= len(steps) <= 3
    assert all(step.title and step.why for step in steps)
    for step in steps:
        require_valid(step.command)
    return [step.command.removeprefix("defectory ") for step in steps]


def require_valid(command_line: str) -> None:
    """Require that the command line accepts the command, and the resolver its settings."""
    name, *args = shlex.split(command_line)
    command: Any = typer.main.get_command(app)
    context: Any = None
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, [args[0]], parent=context)
        name, command, _ = command.resolve_command(context, args)
        args = args[1:]
    given = command.make_context(name, args, parent=context).params
    resolve(project=DATA, preset=given.get("preset"), overrides=given["override"] or ())


def test_too_few_seeds_ask_for_three_and_keep_those_there_are() -> None:
    assert commands(situation(both=(0.3,), real=(0.3,))) == ["run part.toml -o 'segmentation.seeds=[0,1,2]'"]
    other = situation("segmentation.seeds=[7]", both=(0.3,), real=(0.3,))
    assert commands(other) == ["run part.toml -o 'segmentation.seeds=[7,0,1]'"]


def test_a_missing_arm_is_trained() -> None:
    of = situation('segmentation.arms=["real"]')
    of.scores["arms"].pop("synthetic_then_real")
    of.scores["verdict"].update(judge(of.scores["arms"]))
    assert commands(of) == ["""run part.toml -o 'segmentation.arms=["real","mixed"]'"""]
    of = situation('segmentation.arms=["synthetic"]')
    of.scores["arms"].pop("real")
    of.scores["verdict"].update(judge(of.scores["arms"]))
    assert commands(of) == ["""run part.toml -o 'segmentation.arms=["synthetic","real"]'"""]


def test_seeds_are_no_help_while_no_draft_is_accepted() -> None:
    none = {"accepted_share": 0.0, "rejected_by": {"blank": 90}}
    of = situation(both=(0.3,), real=(0.3,), fidelity=none)
    of.scores["arms"].pop("synthetic_then_real")
    of.scores["verdict"].update(judge(of.scores["arms"]))
    assert commands(of) == ["run part.toml -o concept.training.num_steps=800 -o condition.training.num_steps=1200"]


def test_a_gain_within_its_noise_asks_for_as_many_seeds_as_would_tell() -> None:
    # gains .02, .06 and .035: mean .038, standard deviation .020; t(3) * .020 / sqrt(4) = .032 is less
    assert commands(situation(both=(0.32, 0.37, 0.355))) == [
        "run part.toml -o 'segmentation.seeds=[0,1,2,3]'",
        "study part.toml -o 'study.seeds=[0,1,2,3]'",
    ]
    # gains -.02, .06 and .02 would take more seeds than anybody trains
    (step,) = next_steps(situation(both=(0.28, 0.37, 0.34)))
    assert step.title == "Label more images, first of burn"
    assert "seeds to tell" in step.why


def test_a_gain_that_too_few_test_images_hide_asks_for_test_images() -> None:
    of = situation(both=(0.32, 0.33, 0.34))
    of.scores["verdict"].update(outcome="not enough evidence", more_needed={"seeds": None, "images": 140})
    (step,) = next_steps(of)
    assert step.title == "Label more images for val and test"
    assert "140 more test images" in step.why


def test_a_set_that_changes_nothing_needs_labels() -> None:
    of = situation(both=(0.301, 0.309, 0.32))
    assert of.scores["verdict"]["outcome"] == "no worse and no better"
    (step,) = next_steps(of)
    assert step.title == "Label more images, first of burn"
    assert "as good a segmenter" in step.why


def test_a_set_that_helps_is_exported() -> None:
    export = "export part.toml --format coco --out synthetic-coco"
    assert commands(situation()) == [export]
    assert commands(situation(finished=())) == [export, "finalize part.toml"]
    assert commands(situation(leak=0.89)) == [export, "drivers tune part.toml"]


def test_a_set_that_does_not_help_needs_labels_unless_a_failure_explains_it() -> None:
    (step,) = next_steps(situation(both=WORSE))
    assert step.title == "Label more images, first of burn"
    assert step.command == "defectory run part.toml"
    steps = next_steps(situation(both=WORSE, leak=0.89))
    assert [step.verb for step in steps] == ["drivers tune", "run"]
    assert "AUC 0.89, limit 0.65" in steps[0].why


def test_drivers_that_see_the_defect_are_made_blind_first() -> None:
    given = situation("drivers.defect_blind=false", leak=0.89)
    assert "run part.toml -o drivers.defect_blind=true" in commands(given)


def test_a_gain_over_an_arm_that_learnt_nothing_is_not_used() -> None:
    of = situation("segmentation.num_steps=240", real=(0.0, 0.001, 0.0))
    assert of.scores["verdict"]["outcome"] == "use it"
    assert commands(of) == ["run part.toml -o segmentation.num_steps=720"]


def test_failures_come_before_seeds_and_labels_come_last() -> None:
    few = {**LABELS, "test": {"pit": 2, "burn": 9}}
    of = situation(both=(0.3,), real=(0.3,), fidelity={"mean": 0.05}, leak=0.89, copied=0.2, labels=few)
    assert [step.title for step in next_steps(of)] == [
        "Look for drivers that leak less",
        "Train phase 2 twice as long",
        "Train with 3 seeds",
    ]
    steps = next_steps(situation(both=(0.3,), real=(0.3,), labels=few))
    assert [step.title for step in steps] == ["Train with 3 seeds", "Label more images for val and test"]
    assert "test: pit 2, limit 5 of each class" in steps[1].why


def test_few_drafts_follow_the_most_frequent_fault_and_not_a_choice() -> None:
    few = {"accepted_share": 0.1, "rejected_by": {"not chosen": 90, "anomaly": 20, "blank": 3}}
    assert commands(situation(both=WORSE, fidelity=few))[0] == "run part.toml -o condition.defect_free_share=0.3"
    chosen = {"accepted_share": 0.1, "rejected_by": {"not chosen": 90}}
    assert next_steps(situation(both=WORSE, fidelity=chosen))[0].title == "Train both phases twice as long"


@pytest.mark.parametrize(
    ("ratios", "setting"),
    [
        ({"pit": 0.4}, "synthesis.tone_quantile=0.7"),
        ({"pit": 2.0}, "synthesis.tone_quantile=0.3"),
        ({"pit": 0.4, "burn": 2.0}, None),
    ],
)
def test_pale_and_strong_defects_move_the_tone_but_not_both_ways(ratios: dict[str, float], setting: str | None) -> None:
    contrast = {
        name: {"synthetic": ratio, "real": 1.0, "num_synthetic": 30, "num_real": 30} for name, ratio in ratios.items()
    }
    first = commands(situation(both=WORSE, contrast=contrast))[0]
    assert first == ("run part.toml" if setting is None else f"run part.toml -o {setting}")
    fixed = commands(situation("synthesis.mask_guidance=3", both=WORSE, contrast=contrast))[0]
    assert setting is None or fixed.startswith("run part.toml -o synthesis.mask_guidance=")


def test_two_failures_with_one_remedy_take_one_step() -> None:
    few = {"mean": 0.05, "accepted_share": 0.1, "rejected_by": {"not drawn": 90}}
    assert commands(situation(both=WORSE, fidelity=few)) == [
        "run part.toml -o condition.training.num_steps=1200",
        "run part.toml",
    ]


UNLIKE = {
    **{f"{name}_wasserstein{floor}": 2.0 for name in ("mean", "std") for floor in ("", "_floor")},
    "kid": 0.8,
    "kid_interval": [0.5, 1.1],
    "kid_floor": 0.52,
    "kid_floor_interval": [0.13, 1.0],
    "coverage_train": 0.4,
    "images_least_like_train": ["road 7.png", "road 2.png"],
}


@pytest.mark.parametrize("both", [BETTER, WORSE, (0.3, 0.32, 0.31)])
def test_labels_of_missing_surfaces_come_before_more_seeds(both: tuple[float, ...]) -> None:
    steps = next_steps(situation(both=both, image_sets=UNLIKE))
    (place,) = [i for i, step in enumerate(steps) if "surfaces that train lacks" in step.title]
    assert "for example road 7.png, road 2.png" in steps[place].why
    assert "KID of train tiles 0.520, surely above 0.130" in steps[place].why
    assert not any("seeds" in step.title for step in steps[:place])


def test_drafts_that_differ_from_real_tiles_get_grey_drivers_and_then_longer_training() -> None:
    far = UNLIKE | {"kid": 0.8, "kid_interval": [0.5, 1.1], "kid_floor": 0.01, "kid_floor_interval": [-0.1, 0.1]}
    first = commands(situation("drivers.kind=topology", both=WORSE, image_sets=far))[0]
    assert first == "run part.toml -o drivers.kind=grey"
    first = commands(situation("drivers.kind=grey", both=WORSE, image_sets=far))[0]
    assert first.startswith("run part.toml -o concept.training.num_steps=")


def test_a_command_repeats_what_stood_beside_the_project_file() -> None:
    command = CommandLine(file="it's.toml", preset="cpu", settings={"segmentation.seeds": [0], "device": "cpu"})
    (step,) = commands(situation(both=(0.3,), real=(0.3,), command=command))
    assert shlex.split(step) == [
        *("run", "it's.toml", "--preset", "cpu", "-o", "segmentation.seeds=[0,1,2]", "-o", "device=cpu")
    ]
    (step, *_) = commands(situation(both=WORSE, leak=0.89, command=command))
    assert shlex.split(step)[:5] == ["drivers", "tune", "it's.toml", "--preset", "cpu"]


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("failure", REMEDIES)
def test_every_remedy_changes_a_setting_of_every_preset_to_a_valid_value(failure: str, preset: str | None) -> None:
    config = resolve(project=DATA, preset=preset).config
    present = flatten(config.model_dump(mode="json"))
    assert any(remedy.applies(present) for remedy in REMEDIES[failure])
    for remedy in REMEDIES[failure]:
        assert set(remedy.changes) <= set(present)
        settings = remedy.settings(present)
        texts = [setting_text(key, value) for key, value in settings.items()]
        changed = flatten(resolve(project=DATA, preset=preset, overrides=texts).config.model_dump(mode="json"))
        assert {key for key in changed if changed[key] != present[key]} == set(settings)
        require_valid(CommandLine().text(remedy.verb, settings=settings))


@pytest.mark.parametrize(
    "text",
    [
        *("condition.defect_free_share=0", "condition.defect_free_share=0.9", "concept.prior_loss_weight=0"),
        *("synthesis.augmentations_per_image=0", "synthesis.driver_guidance=1", "synthesis.mask_guidance=1"),
        *("synthesis.tone_quantile=1", "synthesis.tone_quantile=0", "concept.training.num_steps=1"),
        *("drivers.defect_blind=false", "synthesis.guidance_scale=7.5", "segmentation.num_steps=2"),
    ],
)
def test_a_remedy_stays_within_a_settings_range(text: str) -> None:
    """At the end of a range a remedy suggests nothing rather than a value that is refused."""
    present = flatten(resolve(project=DATA, overrides=[text]).config.model_dump(mode="json"))
    for remedy in (remedy for of in REMEDIES.values() for remedy in of):
        texts = [setting_text(key, value) for key, value in remedy.settings(present).items()]
        resolve(project=DATA, overrides=[text, *texts])


def test_every_failure_and_every_cause_of_rejection_has_a_remedy() -> None:
    """Labels help against the three failures that are not in the table."""
    by_labels = {NO_GAIN, FEW_HELD_OUT, UNLIKE_TEST}
    names = {s.name for s in situation().signatures} - by_labels - {WRONG_CONTRAST} | {FAR, TOO_WEAK, TOO_STRONG}
    assert set(REMEDIES) == names | {f"{REJECTED}{cause}" for cause in CAUSES}


def test_a_factor_keeps_integers_and_never_reaches_zero() -> None:
    half = remedies.times(0.5)
    assert [half(1), half(2), half(7)] == [1, 1, 4]
    assert isinstance(half(7), int)
    assert remedies.times(2)(0.3) == 0.6


def test_times_follow_from_the_stages_that_run_again() -> None:
    of = situation(both=(0.3,), real=(0.3,))
    settings = ["executor=in-process", 'segmentation.arms=["real","synthetic","synthetic_then_real"]']
    durations = Durations(
        config=resolve(project=DATA, overrides=settings).config,
        recorded={"concept": 100.0, "control": 200.0, "drafts": 30.0, "evaluation": 9.0}
        | {f"segment/{arm}-seed0": seconds for arm, seconds in [("real", 40.0), ("synthetic", 50.0)]},
        stages_of=stages_of,
    )

    def seconds(*overrides: str) -> float | None:
        return durations.of_change(resolve(project=DATA, overrides=[*settings, *overrides]).config)

    # the third arm left no time, so the mean of the others stands for it
    assert durations.of_everything() == 100 + 200 + 30 + 9 + (40 + 50 + 45)
    # six new segmenters, and three times as many are scored
    assert seconds("segmentation.seeds=[0,1,2]") == 2 * (40 + 50 + 45) + 3 * 9
    # phase 1 stays; the real segmenter does not see the drafts
    assert seconds("condition.training.num_steps=1200") == 2 * 200 + 30 + 9 + (50 + 45)
    assert seconds("segmentation.num_steps=1200") == 3 * (40 + 50 + 45) + 9
    assert seconds("name=other") is None
    assert next_steps(of)[0].seconds is not None


def test_segmenters_side_by_side_share_the_time() -> None:
    config = resolve(
        project=DATA, overrides=["executor=local-processes", "num_processes=3", "threads=3", "device=cpu"]
    ).config
    recorded = {stage.folder: 60.0 for stage in stages_of(config) if stage.group}
    assert Durations(config=config, recorded=recorded, stages_of=stages_of).of_everything() == 60.0
