from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from defectory.engine.training.events import Step, Validated
from defectory.events import finish
from defectory.pretraining.config import MAX_DEFECT_WEIGHT, PretrainConfig, StageConfig
from defectory.pretraining.control import paint
from defectory.pretraining.corpus import Corpus, make_corpus
from defectory.pretraining.diffusion import (
    LatentCorpus,
    Noising,
    Window,
    build_scheduler,
    build_unet,
    held_out_loss,
    make_tokenizer,
    stratified_timesteps,
    train_prior,
)
from defectory.pretraining.encoder import dominant_class
from defectory.pretraining.loop import fit
from defectory.pretraining.text import (
    RESERVED_WORDS,
    build_text_encoder,
    build_tokenizer,
    learn_merges,
    short_caption,
    with_defects,
)
from defectory.pretraining.vae import build_vae, reconstruction_loss, reconstruction_psnr_db
from defectory.procedural.defects import DEFECT_WORDS
from defectory.procedural.world import render

CAPTIONS = [
    "a photo of a dark grey brushed metal surface with hole, flat light, with a crack",
    "a bright blue ceramic surface, without defect",
]


def test_the_corpus_is_rendered_once_and_does_not_depend_on_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectory.pretraining.corpus.CHUNK_IMAGES", 3)
    corpus = make_corpus(tmp_path / "one", num_images=7, tile_px=32, seed=2, num_workers=1)
    assert (len(corpus), corpus.images.shape, corpus.class_maps.shape) == (7, (7, 32, 32, 3), (7, 32, 32))
    for index in (0, 4, 6):
        sample = render(200_000_000 + index, (32, 32))
        assert np.array_equal(corpus.images[index], sample.image)
        assert np.array_equal(corpus.class_maps[index], sample.class_map)
        assert (corpus.captions[index], corpus.defect_words[index]) == (sample.caption, sample.defect_words)
    (tmp_path / "one" / "words-0000003.json").unlink()
    kept = (tmp_path / "one" / "images-0000000.npy").stat().st_mtime_ns
    again = make_corpus(tmp_path / "one", num_images=7, tile_px=32, seed=2, num_workers=1)
    assert np.array_equal(again.images, corpus.images)
    assert (tmp_path / "one" / "images-0000000.npy").stat().st_mtime_ns == kept


def test_worker_processes_render_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defectory.pretraining.corpus.CHUNK_IMAGES", 3)
    alone = make_corpus(tmp_path / "one", num_images=6, tile_px=32, seed=2, num_workers=1)
    together = make_corpus(tmp_path / "two", num_images=6, tile_px=32, seed=2, num_workers=2)
    assert np.array_equal(alone.images, together.images)
    assert alone.captions == together.captions


def test_reserved_words_are_one_token_each() -> None:
    tokenizer = build_tokenizer(CAPTIONS, PretrainConfig())
    for word in (*RESERVED_WORDS, "ceramic", "brushed"):
        assert len(tokenizer(word)["input_ids"]) == 3, word
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=32)["input_ids"]
    assert {len(row) for row in ids} == {32}
    assert ids[0] != ids[1]
    unknown = tokenizer("zyxwv")["input_ids"]
    assert len(unknown) > 3, "spelled letter by letter"


def test_the_vocabulary_is_the_same_in_another_process() -> None:
    """A resumed run must read captions by the vocabulary its text encoder has learned."""
    code = (
        "from defectory.pretraining.text import build_tokenizer; from defectory.pretraining.config import "
        "PretrainConfig; import sys;"
        f"sys.stdout.write(build_tokenizer({CAPTIONS!r}, PretrainConfig()).backend_tokenizer.to_str())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "17"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert other == build_tokenizer(CAPTIONS, PretrainConfig()).backend_tokenizer.to_str()


def test_merges_go_by_frequency_then_by_the_alphabet() -> None:
    merges = learn_merges(["lows", "lowt", "be"], 10)
    assert merges[:2] == [("l", "o"), ("lo", "w")]
    assert merges[2:] == [("b", "e</w>"), ("low", "s</w>"), ("low", "t</w>")]
    assert learn_merges(["lows", "lowt", "be"], 1) == [("l", "o")]
    # a, a, a, a</w> -> aa, a, a</w> -> aa, aa</w> -> aaaa</w>
    assert learn_merges(["aaaa"], 10) == [("a", "a"), ("a", "a</w>"), ("aa", "aa</w>")]


def test_the_text_encoder_takes_every_token() -> None:
    config = PretrainConfig(text_width=64, text_layers=1)
    tokenizer = build_tokenizer(CAPTIONS, config)
    encoder = build_text_encoder(tokenizer, config)
    out = encoder(input_ids=torch.tensor([[0, len(tokenizer) - 1]])).last_hidden_state
    assert out.shape == (1, 2, 64)


def test_short_captions_are_the_prompts_of_both_phases() -> None:
    assert short_caption("dim mild", "ceramic", ()) == "an image of a dim mild ceramic"
    assert (
        short_caption("dim mild", "ceramic", ("crack", "pit", "crack"))
        == "an image of a dim mild ceramic with a crack and a pit"
    )


def test_noise_and_target_follow_the_schedule() -> None:
    scheduler = build_scheduler()
    noising = Noising(scheduler, torch.device("cpu"))
    clean, noise = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4, 4, 6)
    steps = torch.tensor([0, 500, 999])
    noisy, target = noising.add(clean, noise, steps)
    assert torch.allclose(noisy, scheduler.add_noise(clean, noise, steps), atol=1e-6)
    assert torch.allclose(target, scheduler.get_velocity(clean, noise, steps), atol=1e-6)
    assert torch.allclose(noisy[2], noise[2], atol=1e-4), "zero terminal SNR"


@pytest.mark.parametrize("floor", [0.25, 0.6])
def test_min_snr_weights_are_bounded(floor: float) -> None:
    noising = Noising(build_scheduler(), torch.device("cpu"))
    weights = noising.min_snr_weight(torch.arange(1000), 5.0, floor)
    snr = noising.alpha_bar / (1 - noising.alpha_bar)
    middle = (snr < 5) & (snr / (snr + 1) > floor)
    assert torch.allclose(weights[middle], (snr / (snr + 1))[middle], atol=1e-5)
    assert torch.allclose(weights[snr / (snr + 1) < floor], torch.tensor(floor))
    assert float(weights.min()) < 1.0


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_caption_is_read_at_the_lowest_resolutions(tiny_recipe: PretrainConfig, stages: int) -> None:
    unet = build_unet(tiny_recipe.model_copy(update={"text_stages": stages}))
    reading = [hasattr(block, "attentions") for block in unet.down_blocks]
    assert reading == [stage >= 3 - stages for stage in range(3)]
    assert [hasattr(block, "attentions") for block in unet.up_blocks] == reading[::-1]


@pytest.mark.parametrize("pools_caption", [True, False])
def test_a_pooled_caption_is_heard_above_the_layers_that_attend_to_it(
    tiny_recipe: PretrainConfig, pools_caption: bool
) -> None:
    unet = build_unet(tiny_recipe.model_copy(update={"text_stages": 1, "pools_caption": pools_caption})).eval()
    heard: list[torch.Tensor] = []
    unet.down_blocks[0].register_forward_hook(lambda _module, _inputs, output: heard.append(output[0]))
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2):
        caption = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            unet(noisy, torch.tensor([500]), encoder_hidden_states=caption)
    assert torch.equal(*heard) is not pools_caption


def test_a_text_width_that_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(ValidationError, match="text_width 96 is not a multiple of 64"):
        PretrainConfig(text_width=96)


def test_timesteps_are_one_per_stratum() -> None:
    drawn = stratified_timesteps(10, 1000, torch.Generator().manual_seed(0))
    assert (drawn // 100).tolist() == list(range(10))


def test_each_class_is_painted_bright_on_dim_geometry() -> None:
    geometry = np.full((6, 9, 3), 50, np.uint8)
    class_map = np.zeros((6, 9), np.uint8)
    class_map[1:3, 2:4], class_map[4, 5:8] = 2, 7
    driver = paint(geometry, class_map, 0.3)
    assert (driver[class_map == 0] == 50).all()
    assert (driver.max(axis=2)[class_map > 0] == 255).all()
    assert (driver[1, 2] != driver[4, 5]).any()
    assert (paint(geometry, class_map, 0.8)[1, 2] != driver[1, 2]).any()
    assert (geometry == 50).all()


def test_a_thin_defect_survives_in_the_encoders_target() -> None:
    class_maps = torch.zeros(1, 8, 12, dtype=torch.uint8)
    class_maps[0, 3, 5] = 4
    small = dominant_class(class_maps, torch.Size((2, 3)))
    assert small.tolist() == [[[0, 4, 0], [0, 0, 0]]]


def test_reconstruction_loss_is_zero_for_equals_and_sees_colour() -> None:
    image = torch.rand(2, 3, 8, 12) * 2 - 1
    even = torch.ones(2, 1, 8, 12)
    assert float(reconstruction_loss(image, image, even)) == 0.0
    grey_error, colour_error = torch.full((2, 3, 8, 12), 0.1), torch.zeros(2, 3, 8, 12)
    colour_error[:, 0] = 0.3  # the same mean error
    assert float(reconstruction_loss(image + colour_error, image, even)) > float(
        reconstruction_loss(image + grey_error, image, even)
    )


def test_psnr_of_the_autoencoder_is_the_closed_form() -> None:
    vae = build_vae(PretrainConfig(vae_channels=(8, 8, 8))).eval()
    image = torch.rand(3, 16, 24) * 2 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(image[None]).latent_dist.mean).sample.clamp(-1, 1)[0]
    mse_255 = float((((decoded + 1) - (image + 1)) * 127.5).square().mean())
    (psnr_db,) = reconstruction_psnr_db(vae, [image])
    assert psnr_db == pytest.approx(20 * np.log10(255) - 10 * np.log10(mse_255), abs=1e-3)


def test_the_learning_rate_warms_up_and_falls_to_two_percent() -> None:
    config = StageConfig(num_steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [config.loop(check_every=1).schedules[0].at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.02, abs=0.005)
    late = config.model_copy(update={"decay_share": 0.25}).loop(check_every=1).schedules[0]
    assert [late.at(step) for step in range(10, 76)] == [1.0] * 66


def test_a_windows_latents_mask_and_caption_are_those_of_its_place(tiny_recipe: PretrainConfig, tmp_path: Path) -> None:
    class_maps = np.zeros((20, 32, 32), np.uint8)
    class_maps[:, 2:8, 1:9] = DEFECT_WORDS.index("pit") + 1
    class_maps[:, 30, 28:31] = DEFECT_WORDS.index("crack") + 1  # 3 px: too few to be named
    class_maps[:, 20:24, 20:24] = DEFECT_WORDS.index("break") + 1
    corpus = Corpus(
        images=np.zeros((20, 32, 32, 3), np.uint8),
        class_maps=class_maps,
        captions=["a dark grey concrete surface, flat light, with a pit"] * 20,
        tones=["dark even"] * 20,
        materials=["concrete"] * 20,
        defect_words=[("break", "pit", "crack")] * 20,
    )
    latents = torch.arange(20 * 4 * 8 * 8).reshape(20, 4, 8, 8).float()
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    tokenizer = build_tokenizer(
        [*corpus.captions, "an image of a dark even without defect break crack and"], tiny_recipe
    )
    recipe = tiny_recipe.model_copy(update={"caption_dropout": 0.0, "short_caption_share": 0.0, "defect_margin": 0})
    data = LatentCorpus(recipe, corpus, tokenizer, cache=tmp_path / "latents.safetensors")
    indices = torch.tensor([3, 5])
    windows = [Window(y=0, x=1, side=4, factor=4), Window(y=4, x=4, side=4, factor=4)]
    assert torch.equal(data.clean(indices, windows), torch.stack([latents[3, :, :4, 1:5], latents[5, :, 4:, 4:]]))
    weight = data.defect_weight(indices, 3.0, windows)[:, 0]
    assert weight.shape == (2, 4, 4)
    assert weight[0].tolist() == [[3, 3, 1, 1], [3, 3, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert weight[1].tolist() == [[1, 1, 1, 1], [1, 3, 1, 1], [1, 1, 1, 1], [1, 1, 1, 3]]
    # defects hold 8 of 64 latent pixels: at 3 they have .3 of the loss
    for share, expected in ((0.05, 2.0), (0.3, 3.0), (0.9, MAX_DEFECT_WEIGHT)):
        shared = data.defect_weight(indices, 2.0, share=share)[:, 0]
        assert shared[:, :2, :3].flatten().tolist() == pytest.approx([expected] * 12)
        assert float(shared[:, 2:5].max()) == 1
    data.config = recipe.model_copy(update={"defect_margin": 1})
    wider = data.defect_weight(indices[1:], 3.0, windows[1:])[0, 0]
    assert wider.tolist() == [[3, 3, 3, 1], [3, 3, 3, 1], [3, 3, 3, 3], [1, 1, 3, 3]]
    data.config = recipe
    told = data.token_ids(indices, torch.Generator().manual_seed(0), windows)
    head = "a dark grey concrete surface, flat light, "
    assert torch.equal(told, data.tokenize([head + "with a pit", head + "with a break"]))
    drawn = [data.window(16, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert {w.y for w in drawn} == {w.x for w in drawn} == set(range(5))
    assert with_defects(corpus.captions[0], ()) == head + "without defect"


def test_the_prior_begins_on_as_many_pixels_in_crops(
    tiny_recipe: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_images=24, tile_px=32, seed=0, num_workers=1)
    save_file({"latents": torch.randn(24, 4, 8, 8).half()}, tmp_path / "latents.safetensors")
    tokenizer = make_tokenizer(tiny_recipe, corpus)
    data = LatentCorpus(tiny_recipe, corpus, tokenizer, cache=tmp_path / "latents.safetensors")
    seen: list[tuple[int, ...]] = []
    add = Noising.add

    def noted(
        self: Noising, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():
            seen.append(tuple(clean.shape))
        return add(self, clean, noise, timesteps)

    monkeypatch.setattr(Noising, "add", noted)
    list(train_prior(tiny_recipe, data, tokenizer, checkpoint=tmp_path / "checkpoint"))
    assert seen == [(16, 4, 4, 4)] * 3 + [(4, 4, 8, 8)] * 3


def test_a_share_of_captions_is_short_and_a_share_empty(tiny_recipe: PretrainConfig, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_images=24, tile_px=32, seed=0, num_workers=1)
    save_file({"latents": torch.randn(24, 4, 8, 8).half()}, tmp_path / "latents.safetensors")
    recipe = tiny_recipe.model_copy(update={"caption_dropout": 0.2, "short_caption_share": 0.3})
    data = LatentCorpus(recipe, corpus, make_tokenizer(recipe, corpus), cache=tmp_path / "latents.safetensors")
    indices = torch.arange(20).repeat(100)
    told = data.token_ids(indices, torch.Generator().manual_seed(0))
    short = [short_caption(*words) for words in zip(corpus.tones, corpus.materials, corpus.defect_words, strict=True)]
    forms = [data.tokenize(texts) for texts in (corpus.captions, short, [""] * 24)]
    shares = [float((told == form[indices]).all(dim=1).float().mean()) for form in forms]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
    assert sum(shares) == pytest.approx(1.0), "each image has its own caption, in one of three forms"


def test_the_compiled_unet_is_the_one_that_trains(
    tiny_recipe: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_images=24, tile_px=32, seed=0, num_workers=1)
    save_file({"latents": torch.randn(24, 4, 8, 8).half()}, tmp_path / "latents.safetensors")
    tokenizer = make_tokenizer(tiny_recipe, corpus)
    data = LatentCorpus(tiny_recipe, corpus, tokenizer, cache=tmp_path / "latents.safetensors")
    calls: list[bool] = []

    def compiled(unet: nn.Module) -> Any:
        def call(*inputs: Any, **named: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return unet(*inputs, **named)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    weights: list[dict[str, torch.Tensor]] = []
    for compiles in (False, True):
        recipe = tiny_recipe.model_copy(update={"compiles": compiles})
        model = finish(train_prior(recipe, data, tokenizer, checkpoint=tmp_path / str(compiles)))
        weights.append(model.state_dict())
    assert calls == [True] * tiny_recipe.diffusion.num_steps, "every step and no held-out loss"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_average_is_checked_and_training_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    def run(checkpoint: Path, check_every: int | None) -> tuple[torch.Tensor, list[torch.Tensor], list[float]]:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        seen: list[torch.Tensor] = []

        def check(step: int) -> float:
            seen.append(model.weight.detach().clone())
            return float(step)

        def loss_of(_step: int, generator: torch.Generator) -> torch.Tensor:
            return (model(torch.randn(8, 2, generator=generator)) - 1).square().mean()

        config = StageConfig(num_steps=10, learning_rate=0.1, warmup_steps=1, ema_decay=0.9)
        checks: dict[str, Any] = {} if check_every is None else {"check": check, "check_every": check_every}
        events = list(fit(model, loss_of, config, stage="toy", seed=3, checkpoint=checkpoint, **checks))
        return model.weight.detach(), seen, [event.value for event in events if isinstance(event, Validated)]

    weight, seen, losses = run(tmp_path / "a", 4)
    assert losses == [4.0, 8.0, 10.0]
    assert torch.equal(seen[-1], weight), "the last check sees what is left in the model"
    assert not torch.equal(seen[0], seen[1])
    unchecked, _, none = run(tmp_path / "b", None)
    assert torch.equal(unchecked, weight)
    assert none == []


def test_the_held_out_loss_is_that_of_images_no_step_sees(tiny_recipe: PretrainConfig, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_images=24, tile_px=32, seed=0, num_workers=1)
    latents = torch.randn(24, 4, 8, 8).half()
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    data = LatentCorpus(
        tiny_recipe, corpus, make_tokenizer(tiny_recipe, corpus), cache=tmp_path / "latents.safetensors"
    )
    asked: list[int] = []

    def exact(
        noisy: torch.Tensor, timesteps: torch.Tensor, _tokens: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:
        asked.extend(indices.tolist())
        alpha_bar = build_scheduler().alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        clean = latents[indices].float()
        # v = (alpha x_t - x) / sigma, off by one half
        return (alpha_bar.sqrt() * noisy - clean) / (1 - alpha_bar).sqrt() + 0.5

    assert held_out_loss(tiny_recipe, data, exact, batch_size=3) == pytest.approx(0.25, rel=1e-3)
    assert asked == [20, 21, 22, 23]


def test_fit_trains_leaves_the_average_and_resumes(tmp_path: Path) -> None:
    target = torch.tensor([1.0, -2.0])

    def run(checkpoint: Path, num_steps: int, stop: int | None = None) -> tuple[torch.Tensor, list[float]]:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)

        def loss_of(_step: int, generator: torch.Generator) -> torch.Tensor:
            x = torch.randn(16, 2, generator=generator)
            return (model(x)[:, 0] - x @ target).square().mean()

        config = StageConfig(
            num_steps=num_steps, learning_rate=0.1, warmup_steps=5, ema_decay=0.9, weight_decay=0, checkpoint_every=7
        )
        losses: list[float] = []
        work = fit(model, loss_of, config, stage="toy", seed=3, checkpoint=checkpoint)
        for event in work:
            if isinstance(event, Step):
                losses.append(event.loss)
                if event.step == stop:
                    work.close()
        return model.weight.detach()[0], losses

    weight, losses = run(tmp_path / "whole", 120)
    assert torch.allclose(weight, target, atol=0.1)
    assert losses[-1] < 0.01 * losses[0]
    run(tmp_path / "cut", 120, stop=40)
    resumed, rest = run(tmp_path / "cut", 120)
    assert len(rest) == 120 - 40
    assert torch.equal(resumed, weight)
    assert rest == losses[40:]
