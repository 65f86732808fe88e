from __future__ import annotations

from defectory.segmentation.tuning import Trial, choose_num_steps, choose_policy, is_stalled


def trial(augmentation: str, seed: int, *scores: float) -> Trial:
    val = tuple((50 * i, score) for i, score in enumerate(scores, start=1))
    return Trial(augmentation=augmentation, seed=seed, num_steps=400, val=val)


def test_a_policy_must_beat_the_default_with_every_seed() -> None:
    flips = [trial("flips", 0, 0.20, 0.30), trial("flips", 1, 0.28, 0.25)]
    uneven = [trial("scale", 0, 0.29), trial("scale", 1, 0.60)]
    assert choose_policy([*flips, *uneven], default="flips") == (
        "flips",
        "no policy beat flips with every seed (flips 0.290, scale 0.445)",
    )
    better = [trial("exposure", 0, 0.31, 0.1), trial("exposure", 1, 0.29)]
    best = [trial("turns", 0, 0.35), trial("turns", 1, 0.30)]
    chosen, reason = choose_policy([*flips, *uneven, *better, *best], default="flips")
    assert chosen == "turns", "the highest mean among those that beat the default"
    assert "turns 0.325" in reason


def test_the_best_validation_is_the_first_of_equal_ones() -> None:
    assert trial("flips", 0, 0.1, 0.3, 0.3).best == (100, 0.3)
    assert trial("flips", 0).best == (400, 0.0)


def test_a_training_is_stalled_after_so_many_validations_without_a_rise() -> None:
    rising = [(50, 0.1), (100, 0.2), (150, 0.19), (200, 0.2)]
    assert not is_stalled(rising[:2], patience=2, least=0.005)
    assert not is_stalled(rising[:3], patience=2, least=0.005)
    assert is_stalled(rising, patience=2, least=0.005), "an equal score is no rise"
    assert not is_stalled([*rising, (250, 0.21)], patience=2, least=0.005)
    assert not is_stalled([(50, 0.2), (100, 0.1)], patience=2, least=0.005), (
        "as many validations as it waits for are too few"
    )
    assert not is_stalled([(50 * i, 0.0) for i in range(1, 9)], patience=2, least=0.005), "it has not begun to rise"


def test_the_number_of_steps_is_the_mean_of_the_best_rounded_up_to_a_validation() -> None:
    trials = [trial("flips", 0, 0.1, 0.3, 0.2, 0.2), trial("flips", 1, 0.1, 0.2, 0.4, 0.4)]
    assert choose_num_steps(trials, every=50, least=0.005) == 150
    assert choose_num_steps(trials[:1], every=50, least=0.005) == 100
    assert choose_num_steps([trial("flips", 0, *[i / 10 for i in range(8)])], every=300, least=0.005) == 400, (
        "never beyond the most"
    )
    assert choose_num_steps([*trials, trial("flips", 2, 0.0, 0.0)], every=50, least=0.005) is None, "one found nothing"
