"""Pretraining of a base, with the drivers of the drivers room handed to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import geometry_map
from defectory.errors import ConfigError
from defectory.pipeline.stage import Event, Progress, StageEnded
from defectory.pretraining.config import PretrainConfig


def pretrain_config(overrides: Sequence[str], *, device: str, seed: int) -> PretrainConfig:
    """Give the configuration of pretraining with `dotted.key=value` settings.

    Raises:
        ConfigError: an unknown or wrong setting.
    """
    from defectory.recipes.resolve import parse

    tree: dict[str, Any] = PretrainConfig(device=device, seed=seed).model_dump(mode="json")
    for text in overrides:
        key, sign, value = text.partition("=")
        *path, last = key.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not sign or not isinstance(node, dict) or last not in node:
            raise ConfigError(f"option {text!r}", "no such setting", f"settings are {', '.join(tree)}")
        node[last] = parse(value)
    try:
        return PretrainConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"option {'.'.join(str(p) for p in first['loc'])}", first["msg"].lower(), "correct the value") from None


def run_pretrain(config: PretrainConfig, *, out: Path, work: Path) -> Iterator[Event]:
    """Pretrain a base into `out/base` and an encoder into `out/encoder`; resumable."""
    import time

    from defectory.pretraining.run import pretrain

    began, stage = time.monotonic(), ""

    def geometry_of(image: Any, mask: Any) -> Any:
        return geometry_map(image, config=DriverConfig(), blind=[mask])

    for event in pretrain(config, work=work, base_out=out / "base", encoder_out=out / "encoder", geometry_of=geometry_of):
        if stage and event.stage != stage:
            yield StageEnded(stage=stage, seconds=time.monotonic() - began, skipped=False, summary="")
            began = time.monotonic()
        stage = event.stage
        yield Progress(stage=stage, done=event.step, total=event.num_steps, note=f"loss {event.loss:.4f}")
    yield StageEnded(stage=stage, seconds=time.monotonic() - began, skipped=False, summary=str(out))
