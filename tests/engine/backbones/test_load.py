from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from defectory.engine.backbones.known import KNOWN_BASES, embedded_folder, resolve_base
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.save import save_base_like
from defectory.errors import WeightsError
from defectory.files import digest_file, digest_folder


@pytest.fixture
def copy(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def test_base_is_loaded_in_the_asked_precision_and_frozen(tiny_base_folder: Path) -> None:
    models = load_base(tiny_base_folder, dtype=torch.bfloat16)
    for model in (models.unet, models.vae, models.text_encoder, models.controlnet):
        assert model is not None
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (models.latent_channels, models.latent_factor, models.tile_px, models.size_multiple_px) == (4, 4, 32, 8)


def test_stable_diffusion_layout_without_control_or_digests_is_loaded(tiny_stable_diffusion_folder: Path) -> None:
    models = load_base(tiny_stable_diffusion_folder)
    assert models.controlnet is None
    assert models.latent_factor == 8
    assert type(models.scheduler).__name__ == "PNDMScheduler"
    assert models.scheduler.config["prediction_type"] == "epsilon"


def test_fp16_variant_files_are_found(tiny_stable_diffusion_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_stable_diffusion_folder, tmp_path / "copy"))
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert load_base(folder).unet.dtype == torch.float32


def test_changed_file_is_refused_by_its_digest(copy: Path) -> None:
    path = copy / "unet" / "config.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(WeightsError, match=r"unet/config\.json: its digest differs"):
        load_base(copy)


def test_file_listed_in_digests_but_missing_is_named(copy: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(WeightsError, match=r"scheduler/scheduler_config\.json: no such file"):
        load_base(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(WeightsError, match=f"the part {part}/ is missing"):
        load_base(copy)


def test_truncated_safetensors_is_refused(copy: Path) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="not a whole safetensors file") as caught:
        load_base(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_pickle_in_place_of_safetensors_is_refused_unopened(copy: Path, suffix: str) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(suffix))
    path.unlink()
    with pytest.raises(WeightsError, match=rf"diffusion_pytorch_model\{suffix}: a pickle"):
        load_base(copy)


@pytest.mark.parametrize("legacy", [True, False])
def test_pickle_under_a_safetensors_name_is_refused(copy: Path, legacy: bool) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="a pickle under a safetensors name"):
        load_base(copy)


def test_weight_that_the_file_lacks_is_never_random(copy: Path) -> None:
    (copy / "digests.json").unlink()
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"conv_in\.weight"):
        load_base(copy)


def test_broken_json_and_unknown_scheduler_are_refused(copy: Path) -> None:
    (copy / "digests.json").unlink()
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(WeightsError, match="names the scheduler UNet2DConditionModel"):
        load_base(copy)
    path.write_text("{")
    with pytest.raises(WeightsError, match="not readable as JSON"):
        load_base(copy)


def test_names_paths_and_mistakes_are_resolved(tmp_path: Path) -> None:
    assert resolve_base("embedded") == embedded_folder()
    assert resolve_base(str(tmp_path)) == tmp_path
    (tmp_path / "sd15").mkdir()
    assert resolve_base("sd15", bases_folder=tmp_path) == tmp_path / "sd15"
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"x")
    for wrong, found in (
        ("sd15", "not on this machine"),
        (str(checkpoint), "a single file that is a pickle"),
        (str(tmp_path / "no"), "neither a folder"),
    ):
        with pytest.raises(WeightsError, match=found):
            resolve_base(wrong)
    assert all(base.licence for base in KNOWN_BASES)


def test_saved_base_equals_its_model_but_for_what_was_replaced(tiny_base_folder: Path, tmp_path: Path) -> None:
    models = load_base(tiny_base_folder)
    with torch.no_grad():
        models.unet.conv_in.weight += 1
    save_base_like(tiny_base_folder, tmp_path / "one", replaced={"unet": models.unet})
    save_base_like(tiny_base_folder, tmp_path / "elsewhere" / "two", replaced={"unet": models.unet})
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "elsewhere" / "two")
    assert str(tiny_base_folder) not in "".join(path.read_text() for path in (tmp_path / "one").rglob("*.json"))
    again = load_base(tmp_path / "one")
    assert torch.equal(again.unet.conv_in.weight, models.unet.conv_in.weight)
    for part in ("vae", "text_encoder"):
        for path in (tiny_base_folder / part).iterdir():
            assert digest_file(path) == digest_file(tmp_path / "one" / part / path.name)
