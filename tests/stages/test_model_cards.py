"""The cards of the concept and of the finished pipeline: true figures, code that runs, the base's licence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from defectory.artifacts.model_card import ModelCard
from defectory.engine.backbones.licences import licence_of
from defectory.events import StageEnded
from defectory.files import digest_folder
from defectory.report.model_readme import model_readme
from defectory.runs.stage import Run
from defectory.stages.all import run_all
from defectory.stages.parts.model_cards import prompt_of_training


def code_of(readme: str) -> str:
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]


def header_of(readme: str) -> dict[str, Any]:
    return yaml.safe_load(readme.split("---\n")[1])


@pytest.fixture(scope="module")
def folder(tiny_run: Any) -> Path:
    return tiny_run[0] / "run"


def test_cards_tell_what_was_trained_on_what(folder: Path) -> None:
    concept = ModelCard.load(folder / "concept" / "card.json")
    pipeline = ModelCard.load(folder / "pipeline" / "card.json")
    split = json.loads((folder / "split" / "split.json").read_text())
    log = [json.loads(line) for line in (folder / "control" / "log.jsonl").read_text().splitlines()]
    held_out = [line["held_out_loss"] for line in log if "held_out_loss" in line]
    assert 0 < concept.num_images <= len(split["train"]) + len(split["pool"])
    assert [one.phase for one in pipeline.trained] == ["concept", "condition"]
    assert pipeline.trained[1].num_steps == sum("loss" in line for line in log)
    assert pipeline.trained[1].held_out_losses == ((held_out[0], min(held_out), held_out[-1]) if held_out else ())
    assert concept.weights_digest == digest_folder(folder / "concept" / concept.folder)
    assert pipeline.base_digest == concept.base_digest
    # five hues, evenly spaced
    assert [one.colour for one in pipeline.classes] == ["#ff0000", "#ccff00", "#00ff66", "#0066ff", "#cc00ff"]


@pytest.mark.parametrize("kind", ["concept", "pipeline"])
def test_code_of_a_readme_draws_an_image(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readme = (folder / kind / "README.md").read_text()
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "driver.png")
    code = code_of(readme).replace('"driver.png"', repr(str(tmp_path / "driver.png")))
    code = code.replace('"drawn.png"', repr(str(tmp_path / "drawn.png"))).replace("pipeline(", "few(")
    code = code.replace("few(", "pipeline(num_inference_steps=2, prompt=")
    monkeypatch.chdir(folder / kind)
    exec(code, {})
    size = Image.open(tmp_path / "drawn.png").size
    assert size == ((48, 32) if kind == "pipeline" else (ModelCard.load(Path("card.json")).tile_px,) * 2)


def test_the_base_s_licence_goes_with_the_weights(
    tiny_run: Any, tmp_path: Path, tiny_base_folder: Path, open_tiny: Callable[..., Run]
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    base = tmp_path / "some-base"
    shutil.copytree(tiny_base_folder, base)
    (base / "LICENSE.md").write_text("You may not sell it.")
    (base / "source.json").write_text(json.dumps({"hub_id": "owner/model", "licence": "openrail"}))
    run = open_tiny(tmp_path / "copy", tiny_run[1], f"base={base}")
    made = [e.stage for e in run_all(run, only=["learn-concept"]) if isinstance(e, StageEnded) and not e.skipped]
    assert made == ["learn-concept"]
    card = ModelCard.load(run.folder / "concept" / "card.json")
    assert (card.base, card.licence_id, card.licence_files) == ("owner/model", "openrail", ("LICENSE.md",))
    assert (run.folder / "concept" / "LICENSE.md").read_text() == "You may not sell it."
    readme = (run.folder / "concept" / "README.md").read_text()
    assert header_of(readme)["license"] == "openrail"
    assert header_of(readme)["base_model"] == "owner/model"
    assert "hand it on together with the weights" in readme


def test_licences_of_known_and_unknown_bases(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert licence_of("sd15", tmp_path).identifier == "creativeml-openrail-m"
    assert "Attachment A" in licence_of("sdxl", tmp_path).words
    unknown = licence_of("/disk/my-base", tmp_path)
    assert (unknown.name, unknown.identifier) == ("my-base", None)
    assert "ask its owner" in unknown.words
    (tmp_path / "source.json").write_text(json.dumps({"hub_id": "stabilityai/stable-diffusion-2-1", "licence": None}))
    assert licence_of("/disk/my-base", tmp_path).identifier == "openrail++"


@pytest.mark.parametrize(
    ("method", "loads"),
    [
        ("dreambooth", []),
        ("lora", ["load_lora_weights"]),
        ("textual_inversion", ["load_textual_inversion"]),
        ("lora_textual_inversion", ["load_textual_inversion", "load_lora_weights"]),
    ],
)
def test_a_concept_s_readme_loads_what_its_method_saved(folder: Path, method: str, loads: list[str]) -> None:
    card = ModelCard.load(folder / "concept" / "card.json")
    trained = card.trained[0].model_copy(update={"method": method})
    told = code_of(model_readme(card.model_copy(update={"trained": (trained,), "licence_id": None})))
    assert re.findall(r"load_\w+", told) == loads
    compile(told, "README.md", "exec")


def test_a_readme_warns_of_a_licence_without_a_text(folder: Path) -> None:
    card = ModelCard.load(folder / "pipeline" / "card.json")
    told = model_readme(card.model_copy(update={"licence_id": None, "licence_files": ()}))
    assert header_of(told)["license"] == "other"
    assert "add one before you hand the weights on" in told


def test_a_pipeline_that_completes_no_words_gets_all_tokens_in_its_prompt(tiny_run: Any, open_tiny: Any) -> None:
    run = open_tiny(tiny_run[0], tiny_run[1], "concept.num_vectors=3")
    concept = run.store().concept.concept.model_copy(
        update={"method": "textual_inversion", "instance_token": "<sks>", "tone_words": False}
    )
    plain, adapter = (
        prompt_of_training(run.store(), run.config, concept, kind, names_defects=False)
        for kind in ("StableDiffusionControlNetPipeline", "StableDiffusionAdapterPipeline")
    )
    assert plain == "an image of a <sks>"
    assert adapter == "an image of a <sks> <sks>_1 <sks>_2"


def test_a_readme_says_what_else_a_pipeline_needs(folder: Path) -> None:
    card = ModelCard.load(folder / "pipeline" / "card.json")
    further = card.model_copy(
        update={
            "opens_as": "StableDiffusion3ControlNetPipeline",
            "opens_with": ", text_encoder_3=None, tokenizer_3=None",
            "num_inference_steps": 4,
            "num_further_networks": 2,
        }
    )
    code = code_of(model_readme(further))
    assert '.from_pretrained(".", text_encoder_3=None, tokenizer_3=None)' in code
    assert "control_image=driver, guidance_scale=1.0, num_inference_steps=4)" in code
    assert "(`controlnet_1`, `controlnet_2`)" in model_readme(further)
    assert "controlnet_1" not in model_readme(card)


def test_a_title_has_the_right_article(folder: Path) -> None:
    card = ModelCard.load(folder / "concept" / "card.json")
    for noun, title in (("industrial surface", "# Concept of an industrial"), ("tile", "# Concept of a tile")):
        assert title in model_readme(card.model_copy(update={"class_noun": noun}))
