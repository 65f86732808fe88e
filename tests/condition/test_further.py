"""Networks that are to act beside a run's own: what is taken, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.artifacts.weights import Concept, Control
from defectory.condition.further import read_further, require_combinable, require_fits
from defectory.condition.load import load_further
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.condition.networks.adapter import Adapter
from defectory.condition.networks.hypernetwork import Hypernetwork
from defectory.engine.backbones.configs import UNetConfig, read_config
from defectory.engine.backbones.load import load_base
from defectory.errors import ConfigError, DefectoryError, WeightsError

WHERE = "synthesis.also_controls 1"


@pytest.fixture(scope="module")
def backbone(tiny_base_folder: Path) -> Any:
    return load_base(tiny_base_folder)


@pytest.fixture(scope="module")
def folders(tiny_base_folder: Path, backbone: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks on the tiny base: of diffusers, and as another run writes them."""
    out = tmp_path_factory.mktemp("networks")
    shutil.copytree(tiny_base_folder / "controlnet", out / "controlnet")
    Adapter.start(backbone, init="auto", seed=1).save(out / "adapter")
    run = out / "run"
    Hypernetwork.start(backbone, init="auto", seed=1).save(run / "control" / "hypernetwork")
    Control(network="hypernetwork", concept_digest="c", driver_config_digest="d", weights_digest="w").save(
        run / "control" / "control.json"
    )
    (run / "concept").mkdir()
    Concept(
        method="none", instance_token="sks", class_noun="part", tone_words=True, base_digest="b", weights_digest="w"
    ).save(run / "concept" / "concept.json")
    return {"controlnet": out / "controlnet", "adapter": out / "adapter", "hypernetwork": run / "control"}


def changed(source: Path, out: Path, **settings: Any) -> Path:
    """Copy a network's folder with other settings."""
    shutil.copytree(source, out)
    content = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**content, **settings}))
    return out


def check(folder: Path, base: Path, *, latent_factor: int = 4, reads_masks: bool = True) -> None:
    unet = read_config(UNetConfig, base / "unet" / "config.json")
    found = read_further(folder, where=WHERE)
    require_fits(found, unet, latent_factor=latent_factor, reads_masks=reads_masks)


@pytest.mark.parametrize("kind", ["controlnet", "adapter", "hypernetwork"])
def test_a_network_of_the_same_base_is_taken_and_loaded(
    kind: str, folders: dict[str, Path], tiny_base_folder: Path, backbone: Any
) -> None:
    check(folders[kind], tiny_base_folder)
    found = read_further(folders[kind], where=WHERE)
    assert found.kind == kind
    assert found.base_digest == ("b" if kind == "hypernetwork" else None)
    network = load_further(found, backbone, reads_masks=True)
    assert isinstance(network, CONDITION_NETWORKS.get(kind))
    assert not any(parameter.requires_grad for parameter in network.module.parameters())


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("controlnet", {"cross_attention_dim": 768}, "another base: cross_attention_dim is 768, 64 was expected"),
        ("controlnet", {"block_out_channels": [320, 640]}, r"block_out_channels is \[320, 640\], \[16, 32\] was"),
        (
            "controlnet",
            {"conditioning_embedding_out_channels": [8] * 4},
            "pixels per latent pixel is 8, 4 was expected",
        ),
        ("controlnet", {"_class_name": "ControlNetUnionModel"}, "is a ControlNetUnionModel; give a ControlNetModel or"),
        ("adapter", {"channels": [320, 640]}, r"channels is \[320, 640\]"),
        ("adapter", {"downscale_factor": 16}, "downscale_factor is 16, 8 was expected"),
        ("adapter", {"in_channels": 1}, "reads grey images, and masks have colours; set its `drivers` to a kind"),
    ],
)
def test_a_network_of_another_base_is_refused_with_what_differs(
    kind: str, settings: dict[str, Any], said: str, folders: dict[str, Path], tiny_base_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=said) as refused:
        check(changed(folders[kind], tmp_path / "network", **settings), tiny_base_folder)
    assert WHERE in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_adapter_of_one_channel_reads_plain_geometry(
    folders: dict[str, Path], tiny_base_folder: Path, tmp_path: Path
) -> None:
    check(changed(folders["adapter"], tmp_path / "grey", in_channels=1), tiny_base_folder, reads_masks=False)


def test_a_hypernetwork_of_other_sizes_is_refused(folders: dict[str, Path], tiny_base_folder: Path) -> None:
    with pytest.raises(WeightsError, match="latent_factor is 4, 8 was expected"):
        check(folders["hypernetwork"], tiny_base_folder, latent_factor=8)


def pickled(folder: Path) -> None:
    next(folder.glob("*.safetensors")).rename(folder / "diffusion_pytorch_model.bin")


def truncated(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def emptied(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(pickled, "a pickle"), (truncated, "not a whole safetensors"), (emptied, "neither control.json nor config.json")],
)
def test_pickles_and_damaged_folders_are_refused(
    damage: Callable[[Path], None], said: str, folders: dict[str, Path], tiny_base_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders["controlnet"], tmp_path / "network")
    damage(tmp_path / "network")
    with pytest.raises(WeightsError, match=said):
        check(tmp_path / "network", tiny_base_folder)


def test_a_path_that_misses_the_folder_says_where_it_is(folders: dict[str, Path], tiny_base_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_further(folders["controlnet"] / "gone", where=WHERE)
    with pytest.raises(WeightsError, match="holds the network in control/; add /control to the path"):
        read_further(folders["hypernetwork"].parent, where=WHERE)
    with pytest.raises(WeightsError, match="holds the network in controlnet/"):
        read_further(tiny_base_folder, where=WHERE)


def test_a_network_of_a_package_without_steer_is_refused() -> None:
    class Alone:
        folder = "alone"

    said = "network alone has no method `steer`, so it cannot act together"
    with CONDITION_NETWORKS.registered("alone", Alone), pytest.raises(ConfigError, match=said):
        require_combinable("alone", where="condition.network")
    with pytest.raises(DefectoryError, match="is not known"):
        require_combinable("alone", where="condition.network")
