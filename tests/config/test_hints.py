"""An unknown key is answered with the settings that it may mean; a value that should be a list, with the list."""

from __future__ import annotations

import pytest

from defectory.config.hints import OTHER_WORDS, keys_like, list_hint
from defectory.config.resolve import defaults, resolve
from defectory.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("num_images", ["synthesis.num_images"]),
        ("val_share", ["split.val_share"]),
        ("synthesis.num_imges", ["synthesis.num_images"]),
        ("synthesis.num_steps", ["synthesis.num_inference_steps"]),
        ("concept.num_steps", ["concept.training.num_steps"]),
        ("concept.token", ["prompts.instance_token"]),
        ("segmentation.num_processes", ["num_processes"]),
        ("outt", ["out", "study.out"]),
        ("gpu", ["device"]),
        ("xyzzy", []),
    ],
)
def test_the_nearest_setting_is_named(key: str, expected: list[str]) -> None:
    assert keys_like(key, defaults()) == expected


def test_a_name_of_several_sections_is_offered_with_each() -> None:
    assert {"concept.training.num_steps", "condition.training.num_steps", "segmentation.num_steps"} <= {
        *keys_like("epochs", defaults())
    }
    with pytest.raises(
        ConfigError, match=r"did you mean 'concept\.training\.batch_size', .* or 'synthesis\.batch_size'"
    ):
        resolve(project={"data": {"path": "a"}, "batch_size": 3})


def test_every_other_word_leads_to_a_setting() -> None:
    last = {key.rpartition(".")[2] for key in defaults()}
    assert {*OTHER_WORDS.values()} <= last
    assert not last & {*OTHER_WORDS} - {"model"}


def test_a_list_is_shown_as_it_is_written_where_the_value_stands() -> None:
    assert list_hint("segmentation.arms", "real", on_command_line=True) == "write `-o 'segmentation.arms=[\"real\"]'`"
    assert list_hint("segmentation.arms", "real", on_command_line=False) == 'write `arms = ["real"]`'
    assert list_hint("segmentation.seeds", "0,1", on_command_line=False) == "write `seeds = [0,1]`"
    with pytest.raises(ConfigError, match=r"write `seeds = \[0,1,2\]` for 3 of them"):
        resolve(project={"data": {"path": "a"}, "segmentation": {"seeds": 3}})
