"""Pretrains, scores and teaches a base, with Defectory's own driver extraction."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from defectory.artifacts.config import Section
from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import geometry_map
from defectory.errors import ConfigError
from defectory.events import Event, Notice, Progress, StageEnded
from defectory.folders.claims import claim_folder, require_replaceable
from defectory.pretraining.config import ON_ACCELERATOR, PretrainConfig, ScoreConfig, WordConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from defectory.artifacts.scores import BaseScores
    from defectory.events import Work
    from defectory.pretraining.corpus import Corpus
    from defectory.pretraining.score import Judge, Named


def pretrain_config(overrides: Sequence[str], *, device: str, seed: int) -> PretrainConfig:
    """Build the configuration of pretraining from `dotted.key=value` settings.

    On an accelerator the values of `ON_ACCELERATOR` replace the defaults.

    Raises:
        ConfigError: an unknown or wrong setting.
    """
    settings = () if device.startswith("cpu") else ON_ACCELERATOR
    return _with_overrides(PretrainConfig(device=device, seed=seed), [*settings, *overrides])


C = TypeVar("C", bound=Section)


def _with_overrides(config: C, overrides: Sequence[str]) -> C:
    from defectory.config.command import parse

    tree: dict[str, Any] = config.model_dump(mode="json")
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
        return type(config).model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"option {'.'.join(str(p) for p in first['loc'])}", first["msg"].lower(), "correct the value"
        ) from None


SAMPLES_PER_CAPTION = 4


def score_config(overrides: Sequence[str]) -> ScoreConfig:
    """Build the configuration of scoring from `dotted.key=value` settings.

    Raises:
        ConfigError: an unknown or wrong setting.
    """
    return _with_overrides(ScoreConfig(), overrides)


def run_score(config: ScoreConfig, *, base: Path, out: Path) -> Generator[Event, None, None]:
    """Score a base on unseen procedural images, into `scores.json` and `samples.png` in `out`.

    A stopped run resumes, except for the samples, which are drawn again.
    """
    from defectory.engine.backbones.load import load_base
    from defectory.engine.sampling.models import for_sampling
    from defectory.pretraining.corpus import make_corpus
    from defectory.pretraining.loop import claim
    from defectory.pretraining.score import GRID_CAPTIONS, draw_captions

    began = time.monotonic()
    # the base is left out, so that one classifier can score several
    claim(
        out,
        config.model_dump(mode="json", include={"seed", "tile_px", "num_images", "num_held_out", "judge"}),
        kind="base-score",
    )
    models = for_sampling(load_base(base))
    count = config.num_images + config.num_held_out
    corpus = make_corpus(
        out / "corpus", num_images=count, tile_px=config.tile_px, seed=config.seed, num_workers=config.num_workers
    )
    yield StageEnded(
        stage="images", seconds=time.monotonic() - began, skipped=False, summary=f"{count} procedural images"
    )
    began = time.monotonic()
    judge, named = yield from _train_judge(corpus, config=config, checkpoint=out / "checkpoint")
    yield StageEnded(stage="judge", seconds=time.monotonic() - began, skipped=False, summary="")
    began = time.monotonic()
    held_out = [(i, n) for i in range(config.num_images, count) if (n := named[i]) is not None][: config.num_samples]
    captions = [c for c in GRID_CAPTIONS for _ in range(SAMPLES_PER_CAPTION)]
    num_in_grid = len(captions)
    captions += [corpus.captions[i] for i, _ in held_out]
    drawn: list[NDArray[np.uint8]] = []
    for batch in draw_captions(models, captions, config=config):
        drawn += batch
        yield Progress(stage="samples", done=len(drawn), total=len(captions))
    _save_grid(out / "samples.png", drawn[:num_in_grid], cell_px=config.tile_px)
    scores = _scores(judge, corpus, held_out, drawn[num_in_grid:], num_train=config.num_images)
    scores.save(out / "scores.json")
    yield StageEnded(
        stage="samples",
        seconds=time.monotonic() - began,
        skipped=False,
        summary=(
            f"material named {scores.material_accuracy_of_samples:.3f} (images {scores.material_accuracy:.3f}), "
            f"defect {scores.defect_accuracy_of_samples:.3f} ({scores.defect_accuracy:.3f}), KID[{scores.encoder}] "
            f"{scores.kid:.4f} ({scores.kid_floor:.4f})"
        ),
    )


def _train_judge(corpus: Corpus, *, config: ScoreConfig, checkpoint: Path) -> Work[tuple[Judge, list[Named | None]]]:
    """Train the classifier, and return it with the true names of the corpus's images."""
    from defectory.engine.training.events import plain
    from defectory.pretraining.score import name_images, train_judge
    from defectory.procedural.defects import DEFECT_WORDS
    from defectory.procedural.materials import MATERIALS

    # all names of the procedural world: a small corpus may lack some
    materials, words = tuple(MATERIALS), DEFECT_WORDS
    named = name_images(corpus, materials, words)
    judge = yield from plain(
        train_judge(
            corpus,
            named,
            num_materials=len(materials),
            num_defects=len(words) + 1,
            config=config,
            checkpoint=checkpoint,
        )
    )
    return judge, named


def _save_grid(path: Path, grid: list[NDArray[np.uint8]], *, cell_px: int) -> None:
    """Save the samples of the fixed captions as a contact sheet. A caption wraps across the samples drawn for it."""
    import textwrap

    from defectory.drawing import contact_sheet
    from defectory.images.save import save_png
    from defectory.pretraining.score import GRID_CAPTIONS

    pieces = [textwrap.wrap(caption.removeprefix("a "), 22) for caption in GRID_CAPTIONS]
    labels = [(parts + [""] * SAMPLES_PER_CAPTION)[i] for parts in pieces for i in range(SAMPLES_PER_CAPTION)]
    save_png(path, contact_sheet(grid, columns=2 * SAMPLES_PER_CAPTION, labels=labels, cell_px=cell_px))


def _scores(
    judge: Judge, corpus: Corpus, held_out: list[tuple[int, Named]], samples: list[NDArray[np.uint8]], *, num_train: int
) -> BaseScores:
    """Score the samples beside the held-out images whose captions they were drawn for."""
    from defectory.engine.features.encoder import embed_images, load_encoder
    from defectory.evaluation.image_metrics import kid
    from defectory.pretraining.score import summarise

    encoder, name = load_encoder()
    images = [corpus.images[i] for i, _ in held_out]
    others = embed_images(encoder, [corpus.images[i] for i in range(min(num_train, len(images)))])
    truth = embed_images(encoder, images)
    return summarise(
        judge,
        images=images,
        samples=samples,
        named=[n for _, n in held_out],
        kid=kid(embed_images(encoder, samples), truth),
        kid_floor=kid(others, truth),
        encoder=name,
    )


def run_pretrain(config: PretrainConfig, *, out: Path, work: Path) -> Generator[Event, None, None]:
    """Pretrain into `out/base`, `out/encoder` and, for the light segmenter's initial weights, `out/segmenter`;
    resumable.

    Raises:
        ConfigError: the device cannot be used; nothing is written.
    """
    from defectory.engine.devices import usable_device
    from defectory.pretraining.run import pretrain
    from defectory.tools.segmenter_start import run_segmenter_start

    usable_device(config.device)
    claim_folder(out, kind="pretrain")
    for part in ("base", "encoder", "segmenter"):
        require_replaceable(out / part, kind="base")

    def geometry_of(image: Any, mask: Any) -> Any:
        return geometry_map(image, config=DriverConfig(), blind=[mask])

    yield from _told(
        pretrain(config, work=work, base_out=out / "base", encoder_out=out / "encoder", geometry_of=geometry_of)
    )
    yield from run_segmenter_start(config, work=work, encoder=out / "encoder", out=out / "segmenter")


def word_config(word: str, overrides: Sequence[str], *, device: str) -> WordConfig:
    """Build the configuration of teaching a word from `dotted.key=value` settings.

    Raises:
        ConfigError: not a word of the procedural world, or an unknown or wrong setting.
    """
    return _with_overrides(WordConfig(device=device), [f"word={word}", *overrides])


def run_teach(config: WordConfig, *, base: Path, out: Path, work: Path) -> Generator[Event, None, None]:
    """Teach a base one word, and write the new base to `out`; resumable.

    Raises:
        ConfigError: the device cannot be used, or the base cannot be taught the word; nothing is written.
    """
    from defectory.engine.devices import usable_device
    from defectory.pretraining.word import teach_word

    usable_device(config.device)
    yield from _told(teach_word(config, base=base, work=work, out=out))


def _told(events: Work[None]) -> Generator[Event, None, None]:
    from defectory.engine.training.events import Checkpointed, Started, Validated

    began, stage, held_out = time.monotonic(), "", ""
    for event in events:
        if isinstance(event, Notice):
            yield event
            continue
        if isinstance(event, Started | Checkpointed):
            continue
        if stage and event.stage != stage:
            yield StageEnded(stage=stage, seconds=time.monotonic() - began, skipped=False, summary=held_out)
            began, held_out = time.monotonic(), ""
        stage = event.stage
        if isinstance(event, Validated):
            held_out = f"held-out loss {event.held_out_loss:.4f} at step {event.step}"
        yield Progress(stage=stage, done=event.done, total=event.total, note=event.note)
    if stage:  # empty if everything was done before
        yield StageEnded(stage=stage, seconds=time.monotonic() - began, skipped=False, summary=held_out)
