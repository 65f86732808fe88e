from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from defectory.engine.backbones.files import write_digests
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.verify import verify
from defectory.engine.training.events import Step, Validated
from defectory.errors import ConfigError, OutputError, StageError
from defectory.files import digest_folder, write_json
from defectory.images.load import load_rgb
from defectory.pretraining.config import StageConfig, WordConfig
from defectory.pretraining.text import RESERVED_WORDS
from defectory.pretraining.word import TaughtWord, least_used_directions, teach_word, texts_without
from defectory.procedural.world import render

WORD = "crack"
STAGE = StageConfig(num_steps=6, batch_size=4, learning_rate=0.05, warmup_steps=1, weight_decay=0.0, checkpoint_every=2)
RECIPE = WordConfig(
    word=WORD,
    mixed_precision="no",
    num_images=12,
    num_held_out=4,
    num_texts=24,
    num_workers=1,
    num_directions=8,
    check_every=3,
    num_drawn=2,
    training=STAGE,
)


@pytest.fixture(scope="module")
def base(made: tuple[Path, list[Any]]) -> Path:
    return made[0] / "base"


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught")
    events = list(teach_word(RECIPE, base=base, work=out / "work", out=out / "base"))
    assert [(e.stage, e.step) for e in events if isinstance(e, Step)] == [("word", i) for i in range(1, 7)]
    assert [e.step for e in events if isinstance(e, Validated)] == [3, 6]
    sheets = [load_rgb(out / "work" / name) for name in ("before.png", "after.png")]
    assert sheets[0].shape == sheets[1].shape
    assert not np.array_equal(*sheets)
    return out / "base"


def test_directions_are_those_that_contexts_do_not_use() -> None:
    rng = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    scales = torch.tensor([3.0, 2.0, 1.0, 1.0, 1e-3, 1e-3])
    contexts = (torch.linalg.qr(torch.randn(500, 6, generator=rng)).Q * scales) @ turned.T
    directions, energies = least_used_directions(contexts, 2)
    torch.testing.assert_close(directions.T @ directions, torch.eye(2))
    torch.testing.assert_close(directions @ directions.T, turned[:, 4:] @ turned[:, 4:].T, atol=1e-4, rtol=0)
    torch.testing.assert_close(energies, torch.full((2,), 1e-6 / 500), rtol=1e-2, atol=0)


def test_one_row_and_the_readings_of_texts_change_and_nothing_else(base: Path, taught: Path) -> None:
    verify(taught)
    for part in ("vae", "tokenizer", "scheduler", "controlnet"):
        assert digest_folder(taught / part) == digest_folder(base / part)
    changed: dict[str, torch.Tensor] = {}
    for path in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = load_file(base / path), load_file(taught / path)
        assert before.keys() == after.keys()
        assert {value.dtype for value in after.values()} == {torch.float16}
        changed |= {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
    rows = {name: change for name, change in changed.items() if "token_embedding" in name}
    token_id = load_base(base).tokenizer(WORD, add_special_tokens=False).input_ids
    assert [change.abs().sum(dim=1).nonzero().flatten().tolist() for change in rows.values()] == [token_id]
    rest = changed.keys() - rows.keys()
    assert rest
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in rest)
    for path in base.rglob("*.json"):
        if path.name not in ("digests.json", ".defectory.json"):
            assert (taught / path.relative_to(base)).read_bytes() == path.read_bytes()


def test_folded_in_the_base_predicts_as_it_was_trained_to_and_texts_off_the_directions_are_untouched(
    base: Path,
) -> None:
    models = load_base(base)
    token_id = models.tokenizer(WORD, add_special_tokens=False).input_ids[0]
    texts = models.tokenizer(
        ["", f"an image of a ceramic with a {WORD}"], padding="max_length", max_length=16, return_tensors="pt"
    ).input_ids
    noisy = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([900, 400])
    context = models.text_encoder(input_ids=texts).last_hidden_state
    before = models.unet(noisy, timesteps, encoder_hidden_states=context).sample
    # the empty text's own tokens span 16 of 64 directions
    word = TaughtWord(models.unet, models.text_encoder, token_id=token_id, others=context[0], num_directions=48)
    torch.testing.assert_close(word(noisy, timesteps, texts), before)
    assert word.change_of_others() == 0
    with torch.no_grad():
        word.embedding += 1
        for change in word.readings:
            change += torch.randn(change.shape, generator=torch.Generator().manual_seed(2))
    assert word.change_of_others() < 1e-6
    after = word(noisy, timesteps, texts)
    torch.testing.assert_close(after[0], before[0], atol=1e-4, rtol=1e-4)
    assert float((after[1] - before[1]).detach().abs().max()) > 1e-3
    word.fold()
    context = models.text_encoder(input_ids=texts).last_hidden_state
    torch.testing.assert_close(models.unet(noisy, timesteps, encoder_hidden_states=context).sample, after)
    torch.testing.assert_close(word(noisy, timesteps, texts), after)


def test_change_of_what_is_read_of_others_is_that_of_the_folded_weights(base: Path) -> None:
    models = load_base(base)
    others = torch.randn(300, 64, generator=torch.Generator().manual_seed(3))
    names = [
        name for name, _ in models.unet.named_parameters() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    ]
    before = [others @ models.unet.get_parameter(name).T for name in names]
    word = TaughtWord(models.unet, models.text_encoder, token_id=5, others=others, num_directions=20)
    with torch.no_grad():
        for change in word.readings:
            change += torch.randn(change.shape, generator=torch.Generator().manual_seed(4))
    told = word.change_of_others().detach()
    word.fold()
    after = [others @ models.unet.get_parameter(name).T for name in names]
    shares = [(new - old).square().mean() / old.square().mean() for old, new in zip(before, after, strict=True)]
    torch.testing.assert_close(told, torch.stack(shares).mean(), rtol=1e-3, atol=0)


@pytest.mark.long
def test_what_was_left_resumes_and_ends_the_same(base: Path, taught: Path, tmp_path: Path) -> None:
    work = teach_word(RECIPE, base=base, work=tmp_path / "work", out=tmp_path / "base")
    for event in work:
        if isinstance(event, Step) and event.step == 4:
            work.close()
    assert not (tmp_path / "base").exists()
    rest = list(teach_word(RECIPE, base=base, work=tmp_path / "work", out=tmp_path / "base"))
    assert [event.step for event in rest if isinstance(event, Step)] == [5, 6]
    assert digest_folder(tmp_path / "base") == digest_folder(taught)
    with pytest.raises(StageError, match="another recipe"):
        next(teach_word(RECIPE.model_copy(update={"seed": 9}), base=base, work=tmp_path / "work", out=tmp_path / "new"))


def test_what_cannot_be_taught_is_told_and_nothing_written(base: Path, tmp_path: Path) -> None:
    models = load_base(base)
    with pytest.raises(ConfigError, match="65 of 64 that this base has"):
        next(
            teach_word(
                RECIPE.model_copy(update={"num_directions": 65}),
                base=base,
                work=tmp_path / "work",
                out=tmp_path / "base",
            )
        )
    other = tmp_path / "other"
    shutil.copytree(base, other)
    schedule = other / "scheduler" / "scheduler_config.json"
    write_json(schedule, json.loads(schedule.read_text()) | {"prediction_type": "epsilon"})
    write_digests(other)
    with pytest.raises(ConfigError, match="another noise schedule"):
        next(teach_word(RECIPE, base=other, work=tmp_path / "work", out=tmp_path / "base"))
    shutil.rmtree(other)
    spelled = next(
        w for w in ("corrosion", "inclusion", "fray", "pores", "dent") if len(models.tokenizer(w)["input_ids"]) > 3
    )
    with pytest.raises(ConfigError, match="tokens in this base's vocabulary"):
        next(
            teach_word(
                RECIPE.model_copy(update={"word": spelled}), base=base, work=tmp_path / "work", out=tmp_path / "base"
            )
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'rust' is not one of crack, "):
        WordConfig(word="rust")


def test_a_folder_that_is_there_is_kept(base: Path, tmp_path: Path) -> None:
    before = digest_folder(base)
    with pytest.raises(OutputError, match="is there already"):
        next(teach_word(RECIPE, base=base, work=tmp_path / "work", out=base))
    assert digest_folder(base) == before
    assert not list(tmp_path.iterdir())


def test_images_of_one_word_hold_no_other_and_other_texts_do_not_name_it() -> None:
    samples = [render(i, (48, 64), with_defect=True, only="dent") for i in range(24)]
    assert {word for sample in samples for word in sample.defect_words} == {"dent"}
    assert sum(bool(sample.defect_words) for sample in samples) > 12
    assert len({word for i in range(24) for word in render(i, (48, 64), with_defect=True).defect_words}) > 4
    again = render(3, (48, 64), with_defect=True, only="dent")
    np.testing.assert_array_equal(again.image, samples[3].image)


def test_other_texts_are_captions_prompts_and_the_empty_one(base: Path, tmp_path: Path) -> None:
    from defectory.pretraining.corpus import make_corpus

    corpus = make_corpus(tmp_path, num_images=40, tile_px=32, seed=5, num_workers=1)
    assert any(WORD in words for words in corpus.defect_words)
    texts = texts_without(corpus, WORD)
    assert not [text for text in texts if WORD in text.split()]
    assert texts[-1] == ""
    assert {w for w in RESERVED_WORDS if any(w in text.split() for text in texts)} >= {
        "sks",
        "gouge",
        "edge",
        "blowhole",
    }
