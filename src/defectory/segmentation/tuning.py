"""Chooses augmentation policy and number of steps from validation scores. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from defectory.artifacts.value import Value

MIN_VAL_INSTANCES = 8
"""With fewer defects on validation, one defect more or less decides, so nothing is chosen."""


class Trial(Value):
    """One short training of the real arm."""

    augmentation: str
    seed: int
    num_steps: int
    """Steps it was given; it ends earlier if validation no longer rises."""
    val: tuple[tuple[int, float], ...] = ()
    """Step and score of each validation."""

    @property
    def best(self) -> tuple[int, float]:
        """Return the step and the score of the best validation, the first of equal ones."""
        return max(self.val, key=lambda pair: pair[1], default=(self.num_steps, 0.0))


class Tuning(Value):
    """What validation chose, and all scores that it was chosen by."""

    augmentation: str
    num_steps: int
    reason: str
    """Why it was chosen, or why the settings were kept."""
    num_val_instances: int
    trials: tuple[Trial, ...] = ()


def is_stalled(val: Sequence[tuple[int, float]], *, patience: int, least: float) -> bool:
    """Check whether the last `patience` validations have all failed to exceed those before them.

    A training whose scores are below `least`, so that it has found next to nothing so far, is not stalled.
    """
    scores = [score for _, score in val]
    if len(val) <= patience or max(scores) < least:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])


def choose_policy(trials: Sequence[Trial], *, default: str) -> tuple[str, str]:
    """Return the chosen policy and why.

    Only a policy that beats the default with every seed may replace it. Among these, the highest mean wins.

    Args:
        trials: of every policy with the same seeds.
        default: policy that stays unless another is better.
    """
    scores: dict[str, dict[int, float]] = {}
    for trial in trials:
        scores.setdefault(trial.augmentation, {})[trial.seed] = trial.best[1]
    means = {name: mean(of.values()) for name, of in scores.items()}
    told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    better = [name for name, of in scores.items() if name != default and _beats(of, scores[default])]
    if not better:
        return default, f"no policy beat {default} with every seed ({told})"
    chosen = max(better, key=lambda name: means[name])
    return chosen, f"{chosen} beat {default} with every seed ({told})"


def _beats(scores: Mapping[int, float], other: Mapping[int, float]) -> bool:
    return all(scores[seed] > other[seed] for seed in other)


def choose_num_steps(trials: Sequence[Trial], *, every: int, least: float) -> int | None:
    """Return the mean number of steps at the best validation, rounded up to a validation.

    None if a training found next to nothing, since its best validation then means nothing.

    Args:
        trials: one per seed, each trained until validation no longer rose.
        every: steps between two validations.
        least: score below which a training found next to nothing.
    """
    if min(trial.best[1] for trial in trials) < least:
        return None
    steps = mean(trial.best[0] for trial in trials)
    return min(max(trial.num_steps for trial in trials), -(-round(steps) // every) * every)
