from __future__ import annotations

import json
from pathlib import Path

import pytest

from defectory.config.resolve import resolve
from defectory.config.template import project_template
from defectory.errors import ConfigError
from defectory.synthesis.config import SynthesisConfig


@pytest.mark.parametrize(("num_images", "rounds"), [(8, 1), (8, 3), (7, 7), (200, 4)])
def test_rounds_draw_even_parts_that_add_up(num_images: int, rounds: int) -> None:
    config = SynthesisConfig(num_images=num_images, rounds=rounds, num_drivers=5)
    parts = [config.of_round(number) for number in range(1, rounds + 1)]
    counts = [of.num_images for of in parts]
    assert sum(counts) == num_images
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1
    assert all(of.rounds == 1 and (of.num_drivers or 0) >= 1 for of in parts)


def test_one_round_is_the_settings_themselves() -> None:
    config = SynthesisConfig(num_images=9)
    assert config.of_round(1) is config


def test_a_round_without_a_draft_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds 3 are more than num_images 2"):
        resolve(project={"data": {"path": "a.json"}}, overrides=["synthesis.rounds=3", "synthesis.num_images=2"])


@pytest.mark.parametrize(("start", "end", "taken"), [(0.0, 1.0, True), (0.5, 0.75, True), (0.6, 0.7, False)])
def test_a_network_that_would_act_in_no_step_is_refused(start: float, end: float, taken: bool) -> None:
    settings = {"num_inference_steps": 4, "control_guidance_start": start, "control_guidance_end": end}
    if taken:
        assert SynthesisConfig.model_validate(settings).control_guidance_end == end
        return
    overrides = [f"synthesis.{name}={value}" for name, value in settings.items()]
    with pytest.raises(ConfigError, match=r"no whole step of num_inference_steps 4 lies between .* 0.6 and"):
        resolve(project={"data": {"path": "a.json"}}, overrides=overrides)


def test_further_networks_are_a_list_of_tables_in_every_layer(tmp_path: Path) -> None:
    networks = [{"path": "../other/control", "scale": 0.5}, {"path": "canny", "drivers": "edges", "end": 0.8}]
    text = project_template({"data": {"path": "a.json"}, "synthesis": {"also_controls": networks, "rounds": 2}})
    (tmp_path / "project.toml").write_text(text)
    tables = 'data.path = "a.json"\n' + "".join(
        "[[synthesis.also_controls]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in one.items())
        for one in networks
    )
    (tmp_path / "tables.toml").write_text(tables)
    found = [
        resolve(project_file=tmp_path / "project.toml").config,
        resolve(project_file=tmp_path / "tables.toml").config,
        resolve(
            project={"data": {"path": "a.json"}}, overrides=[f"synthesis.also_controls={json.dumps(networks)}"]
        ).config,
    ]
    assert found[0].synthesis.rounds == 2
    for config in found:
        first, second = config.synthesis.also_controls
        assert (first.scale, first.start, first.end, first.drivers) == (0.5, 0.0, 1.0, "same")
        assert (second.path, second.scale, second.end, second.drivers) == ("canny", 1.0, 0.8, "edges")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"scale": 1}, r"also_controls\.path: is missing"),
        ({"path": "a", "strength": 1}, r"also_controls\.strength: extra inputs"),
        ({"path": "a", "scale": -1}, r"command line: synthesis\.also_controls\.scale: input should be greater"),
        ({"path": "a\n"}, "path holds a control character"),
        ({"path": "a", "scale": float("inf")}, "scale is not a finite number"),
        ({"path": "a", "start": 0.9, "end": 0.91}, "between start 0.9 and end 0.91 of also_controls 1"),
    ],
)
def test_a_wrong_table_of_a_further_network_is_one_line(network: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        resolve(project={"data": {"path": "a.json"}}, overrides=[f"synthesis.also_controls={json.dumps([network])}"])
    assert "\n" not in str(refused.value)
