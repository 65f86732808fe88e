"""Every condition network: it starts as the base, trains, resumes, steers, and plain diffusers draws the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.artifacts.weights import Concept
from defectory.condition.config import ConditionConfig
from defectory.condition.learn import learn_condition, load_adapted_base
from defectory.condition.load import load_network
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.condition.networks.adapter import adapter_kind
from defectory.condition.networks.capacity import num_kept_in
from defectory.condition.networks.controlnet import ControlNet
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.save import save_base_like
from defectory.engine.training.config import TrainingConfig
from defectory.errors import ConfigError, WeightsError
from defectory.events import Progress
from defectory.files import digest_file, digest_folder

Tiles = Callable[..., list[Any]]
TRAINING = TrainingConfig(
    num_steps=4,
    batch_size=4,
    variants_per_image=1,
    warmup_steps=0,
    learning_rate=3e-2,
    ema_decay=0,
    mixed_precision="no",
)
CASES: dict[str, dict[str, Any]] = {
    "half a controlnet": {"capacity": 0.5, "init": "copy"},
    "adapter": {"network": "adapter"},
    "hypernetwork": {"network": "hypernetwork", "hypernetwork_rank": 2},
}
each_network = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())


def config_of(settings: dict[str, Any]) -> ConditionConfig:
    return ConditionConfig(training=TRAINING, **settings)


def start(settings: dict[str, Any], backbone: Any) -> Any:
    config = config_of(settings)
    kind: Any = CONDITION_NETWORKS.get(config.network)
    further = {name: getattr(config, name) for name in getattr(kind, "settings", ())}
    return kind.start(backbone, init=config.init, seed=2, **further)


@pytest.fixture(scope="module")
def concept(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("concept")
    save_base_like(tiny_base_folder, out / "base", replaced={})
    Concept(
        method="dreambooth",
        instance_token="sks",
        class_noun="surface",
        tone_words=True,
        base_digest="b",
        weights_digest=digest_folder(out / "base"),
    ).save(out / "concept.json")
    return out


def learning(tiles: list[Any], concept: Path, out: Path, settings: dict[str, Any]) -> Any:
    return learn_condition(
        tiles, concept=concept, config=config_of(settings), make_driver=make_driver, driver_digest="d", seed=3, out=out
    )


def make_driver(image: Any, instances: Any, _valid_hw: tuple[int, int]) -> Any:
    driver = (image // 5).astype(np.uint8)
    for _, mask in instances:
        driver[mask] = (255, 0, 0)
    return driver


def outcome(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): digest_file(path)
        for path in sorted(out.rglob("*"))
        if path.name != ".defectory.json" and path.is_file() and "cache" not in path.parts
    }


def predicted(network: Any, models: Any, drivers: torch.Tensor, **options: Any) -> torch.Tensor:
    noisy = torch.randn((2, 4, 8, 12), generator=torch.Generator().manual_seed(0))
    context = encode_prompts(models, ["a crack", "a blowhole"])
    with torch.no_grad():
        if network is None:
            return models.predict(noisy, torch.tensor([5, 900]), context)
        return network.predict(models, noisy, torch.tensor([5, 900]), context, drivers, **options)


def drivers_of(seed: int) -> torch.Tensor:
    return torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(seed))


@each_network
def test_it_starts_as_the_base_and_its_weights_have_gradients_and_the_bases_have_none(
    concept: Path, settings: dict[str, Any]
) -> None:
    models = load_base(concept / "base")
    network = start(settings, models)
    assert torch.equal(predicted(network, models, drivers_of(1)), predicted(None, models, drivers_of(1)))
    network.module.requires_grad_(True)
    context = encode_prompts(models, ["a crack", "a blowhole"])
    result = network.predict(models, torch.randn(2, 4, 8, 12), torch.tensor([5, 900]), context, drivers_of(1))
    result.square().mean().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.module.parameters())
    assert all(parameter.grad is not None for parameter in network.module.parameters())
    assert all(parameter.grad is None for parameter in models.denoiser.parameters())


@each_network
def test_left_training_resumes_to_the_same_files_and_the_network_steers(
    concept: Path, training_tiles: Tiles, tmp_path: Path, settings: dict[str, Any]
) -> None:
    before = digest_folder(concept)
    for _ in learning(training_tiles(), concept, tmp_path / "whole", settings):
        pass
    left = learning(training_tiles(), concept, tmp_path / "left", settings)
    for event in left:
        if isinstance(event, Progress) and event.note.startswith("loss") and event.done == 2:
            break
    left.close()
    notes = [event.note for event in learning(training_tiles(), concept, tmp_path / "left", settings)]
    assert "resumed from a checkpoint" in notes
    assert outcome(tmp_path / "left") == outcome(tmp_path / "whole")
    assert digest_folder(concept) == before

    models = load_adapted_base(concept)
    network: Any = load_network(tmp_path / "whole", models)
    one, other = predicted(network, models, drivers_of(1)), predicted(network, models, drivers_of(2))
    assert (one - other).abs().max() > 1e-4, "the driver matters"
    plain = predicted(None, models, drivers_of(1))
    assert torch.equal(predicted(network, models, drivers_of(1), scale=0.0), plain)
    assert torch.equal(predicted(None, models, drivers_of(1)), plain), "nothing stays in the frozen network"


def test_a_smaller_network_is_smaller_and_its_stock_form_predicts_the_same(concept: Path) -> None:
    models = load_base(concept / "base")
    whole, half = start({"init": "copy"}, models), start(CASES["half a controlnet"], models)
    assert num_kept_in(half.module) == 4
    sizes = [sum(p.numel() for p in network.module.parameters()) for network in (half, whole)]
    assert sizes[0] < 0.5 * sizes[1]
    with torch.no_grad():
        for parameter in half.module.parameters():
            parameter.normal_(std=0.1)
    wide = half.plain_module()
    assert {n: p.shape for n, p in wide.state_dict().items() if "controlnet_down" in n} == {
        n: p.shape for n, p in whole.module.state_dict().items() if "controlnet_down" in n
    }
    ours, stock = (predicted(ControlNet(module), models, drivers_of(1)) for module in (half.module, wide))
    assert (ours - predicted(None, models, drivers_of(1))).abs().max() > 1e-3
    assert torch.allclose(ours, stock, atol=1e-5)


def test_a_setting_of_another_network_is_refused(concept: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"condition.capacity: 0.5, but the network adapter has no such setting"):
        list(learning(training_tiles(), concept, tmp_path, {"network": "adapter", "capacity": 0.5}))
    with pytest.raises(WeightsError, match=r"that network has capacity 1, not 0\.5"):
        start({"capacity": 0.5, "init": "embedded"}, load_base(concept / "base"))
    with pytest.raises(WeightsError, match="no base ships an adapter"):
        start({"network": "adapter", "init": "embedded"}, load_base(concept / "base"))
    with pytest.raises(WeightsError, match="no base ships a hypernetwork"):
        start({"network": "hypernetwork", "init": "embedded"}, load_base(concept / "base"))


def test_an_adapter_has_the_sizes_of_the_encoders_blocks() -> None:
    down, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    assert adapter_kind([cross, cross, cross, down], latent_factor=8) == ("full_adapter", 8)
    assert adapter_kind([down, cross, cross], latent_factor=4) == ("full_adapter_xl", 8)
    with pytest.raises(WeightsError, match="no T2I-Adapter fits"):
        adapter_kind([down, down, cross, cross], latent_factor=8)
