from __future__ import annotations

from defectory.engine.backbones.prompts import class_prompt, concept_prompt, condition_prompt


def test_prompts_read_as_in_the_paper() -> None:
    assert concept_prompt("sks") == "an image of a sks"
    assert class_prompt("turbine blade") == "a turbine blade"
    assert condition_prompt("sks", ["axial"], defect_noun="crack") == "an image of a sks with a axial crack"
    assert (
        condition_prompt("sks", ["axial", "burn"], defect_noun="crack")
        == "an image of a sks with a axial crack and a burn crack"
    )


def test_class_is_named_once_and_its_noun_is_not_doubled() -> None:
    assert condition_prompt("sks", ["Hot_spot", "crack", "crack"]) == "an image of a sks with a hot spot and a crack"
    assert condition_prompt("sks", ["edge-crack"], defect_noun="crack") == "an image of a sks with a edge crack"


def test_tile_without_defects_gets_the_concept_prompt() -> None:
    assert condition_prompt("sks", []) == concept_prompt("sks")


def test_tone_words_stand_before_the_token() -> None:
    assert concept_prompt("sks", "dim mild") == "an image of a dim mild sks"
    assert (
        condition_prompt("sks", ["axial"], defect_noun="crack", tone="dim mild")
        == "an image of a dim mild sks with a axial crack"
    )
    assert condition_prompt("sks", [], tone="dim mild") == concept_prompt("sks", "dim mild")
