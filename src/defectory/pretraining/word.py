"""Teaches a base one word of the procedural world that it draws badly, with little change for other texts.

The word's embedding is learned (textual inversion, Gal et al. 2023), and so are the keys and values of the UNet's
cross-attention (custom diffusion, Kumari et al. 2023). Keys and values change only in directions that texts without the
word hardly use, which is ours; the word's embedding is free to move there.
"""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel

from defectory.drawing import contact_sheet
from defectory.engine.backbones.files import write_digests
from defectory.engine.backbones.parts import quiet
from defectory.engine.backbones.save import save_model
from defectory.engine.backbones.sd1.model import StableDiffusion, load_stable_diffusion
from defectory.engine.precision import autocast
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.training.attention import use_plain_attention
from defectory.errors import ConfigError, OutputError
from defectory.events import Work
from defectory.files import MARKER_NAME, digest_folder, write_json
from defectory.folders.claims import require_replaceable
from defectory.folders.swap import atomic_folder, remove_ours
from defectory.images.save import save_png
from defectory.pretraining.config import PretrainConfig, ScoreConfig, WordConfig
from defectory.pretraining.corpus import Corpus, make_corpus
from defectory.pretraining.diffusion import (
    LatentCorpus,
    Noising,
    build_scheduler,
    cache_latents,
    held_out_loss,
    stratified_timesteps,
)
from defectory.pretraining.loop import claim, fit
from defectory.pretraining.score import draw_captions
from defectory.pretraining.text import RESERVED_WORDS, short_caption

BEFORE, AFTER = "before.png", "after.png"
READINGS = ("attn2.to_k.weight", "attn2.to_v.weight")
"""Parameters of the UNet that compute keys and values of a text."""


def least_used_directions(contexts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions [D,count] of least mean energy in contexts [N,D], and their energies [count]."""
    energies, directions = torch.linalg.eigh(contexts.double().T @ contexts.double() / len(contexts))
    return directions[:, :count].float(), energies[:count].clamp_min(0).float()


class TaughtWord(nn.Module):
    """A frozen base that learns to read one word.

    Args:
        unet: keys and values of its cross-attention are trained.
        text_encoder: one row of its embedding is trained.
        token_id: of the word.
        others: float [N,D], what the UNet reads of texts without the word, one row per token.
        num_directions: keys and values change in this many directions, those that `others` use least.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        *,
        token_id: int,
        others: Tensor,
        num_directions: int,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet.requires_grad_(False), text_encoder.requires_grad_(False)
        embeddings: Any = text_encoder.get_input_embeddings()
        embedding: Tensor = embeddings.weight
        self._row = next(name for name, value in text_encoder.named_parameters() if value is embedding)
        self._token_id = token_id
        self._directions, self._energies = least_used_directions(others, num_directions)
        self._readings = [name for name, _ in unet.named_parameters() if name.endswith(READINGS)]
        self.embedding = nn.Parameter(embedding[token_id].clone())
        weights = [unet.get_parameter(name) for name in self._readings]
        self.readings = nn.ParameterList(
            nn.Parameter(embedding.new_zeros(len(weight), num_directions)) for weight in weights
        )
        self._read_of_others = [(others @ weight.T).square().sum(dim=1).mean() for weight in weights]

    def _words(self) -> dict[str, Tensor]:
        weight = self.text_encoder.get_parameter(self._row)
        here = torch.zeros(len(weight), 1, dtype=torch.bool, device=weight.device)
        here[self._token_id] = True
        return {self._row: torch.where(here, self.embedding, weight)}

    def _read(self) -> dict[str, Tensor]:
        changes = zip(self._readings, self.readings, strict=True)
        return {name: self.unet.get_parameter(name) + change @ self._directions.T for name, change in changes}

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Return the predicted v [B,C,h,w]."""
        context = functional_call(self.text_encoder, self._words(), kwargs={"input_ids": token_ids}).last_hidden_state
        return functional_call(
            self.unet, self._read(), args=(noisy, timesteps), kwargs={"encoder_hidden_states": context}
        ).sample

    def change_of_others(self) -> Tensor:
        """Compute the relative mean squared change of other texts' keys and values, averaged over layers."""
        changes = zip(self.readings, self._read_of_others, strict=True)
        return torch.stack([(change.square() @ self._energies).sum() / read for change, read in changes]).mean()

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the learned change into UNet and text encoder, and reset the change of keys and values to zero."""
        for network, values in ((self.text_encoder, self._words()), (self.unet, self._read())):
            for name, value in values.items():
                network.get_parameter(name).copy_(value)
        for change in self.readings:
            change.zero_()


def teach_word(config: WordConfig, *, base: Path, work: Path, out: Path) -> Work[None]:
    """Write a copy of a base that knows one more word of the procedural world; a second call resumes from `work`.

    Args:
        config: word and recipe.
        base: of the embedded kind, made by `pretrain`.
        work: folder of images with only this word's defect, texts without it, cached latents, checkpoint, samples
            (`before.png`, `after.png`), and the change of other texts' keys and values (`others.json`, relative, root
            mean square).
        out: new base folder, written when the word is learned. All files except UNet and text encoder are copies.

    Raises:
        ConfigError: the base is not of the embedded kind, spells the word in several tokens, or has fewer directions
            than `num_directions`.
        OutputError: `out` exists already.
        StageError: `work` belongs to another recipe.
    """
    if out.exists():
        raise OutputError(out, "is there already", "give another folder")
    require_replaceable(out, kind="base")
    models = load_stable_diffusion(base, config.device)
    token_id = _token_of(models, config)
    claim(work, {"base": digest_folder(base), **config.model_dump(mode="json")})
    # LatentCorpus needs a recipe of pretraining
    recipe = PretrainConfig(
        seed=config.seed,
        device=config.device,
        mixed_precision=config.mixed_precision,
        tile_px=models.tile_px,
        num_images=config.num_images,
        num_held_out=config.num_held_out,
        caption_dropout=0.0,
        short_caption_share=config.short_caption_share,
        crop_share=0.0,
        defect_share=config.defect_share,
        text_length=int(models.tokenizer.model_max_length),
    )
    count, workers = config.num_images + config.num_held_out, config.num_workers
    corpus = make_corpus(
        work / "corpus",
        num_images=count,
        tile_px=models.tile_px,
        seed=config.seed,
        num_workers=workers,
        only=config.word,
    )
    others = make_corpus(
        work / "others", num_images=config.num_texts, tile_px=models.tile_px, seed=config.seed, num_workers=workers
    )
    yield from cache_latents(recipe, corpus, models.vae, work / "latents.safetensors")
    data = LatentCorpus(recipe, corpus, models.tokenizer, cache=work / "latents.safetensors")
    contexts = _contexts(models, data, texts_without(others, config.word))
    held_out = range(config.num_images, count)
    drawn = [corpus.captions[i] for i in held_out if corpus.defect_words[i]][: config.num_drawn]
    if not (work / BEFORE).is_file():
        _draw(models, drawn, work / BEFORE)
    taught = TaughtWord(
        models.unet, models.text_encoder, token_id=token_id, others=contexts, num_directions=config.num_directions
    )
    yield from _fit(taught, config, data, checkpoint=work / "checkpoint")
    write_json(work / "others.json", {"readings_changed": round(float(taught.change_of_others().detach()) ** 0.5, 5)})
    taught.fold()
    _draw(models, drawn, work / AFTER)
    with quiet(), atomic_folder(out, kind="base") as folder:
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER_NAME))
        for part, model in (("unet", models.unet), ("text_encoder", models.text_encoder)):
            remove_ours(folder / part)
            save_model(model.to("cpu", torch.float16), folder / part)
            shutil.copyfile(base / part / "config.json", folder / part / "config.json")
        write_digests(folder)


def _fit(taught: TaughtWord, config: WordConfig, data: LatentCorpus, *, checkpoint: Path) -> Work[None]:
    device, size = data.device, config.training.batch_size
    use_plain_attention(taught.unet, num_tokens=data.latents[0, 0].numel(), device=device)
    taught.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    noising = Noising(build_scheduler(), device)
    # an image lacks the defect if its surface would not show it
    shows = torch.tensor([i for i in range(data.num_train) if data.corpus.defect_words[i]], device=device)

    def loss_of(_step: int, generator: torch.Generator) -> Tensor:
        indices = shows[torch.randint(len(shows), (size,), generator=generator, device=device)]
        clean = data.clean(indices)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = stratified_timesteps(size, 1000, generator)
        token_ids = data.token_ids(indices, generator)
        weight = data.defect_weight(indices, data.config.defect_weight, share=config.defect_share)
        noisy, target = noising.add(clean, noise, timesteps)
        with autocast(config.mixed_precision, device):
            predicted = taught(noisy.contiguous(memory_format=torch.channels_last), timesteps, token_ids)
        per_image = (weight * (predicted.float() - target).square()).mean(dim=(1, 2, 3))
        loss = (noising.min_snr_weight(timesteps, config.min_snr_gamma, config.min_snr_floor) * per_image).mean()
        return loss + config.keep_weight * taught.change_of_others()

    def check(_step: int) -> float:
        return held_out_loss(
            data.config,
            data,
            lambda noisy, timesteps, ids, _: taught(noisy, timesteps, ids),
            batch_size=size,
            at_defects=True,
        )

    yield from fit(
        taught,
        loss_of,
        config.training,
        stage="word",
        seed=config.seed,
        checkpoint=checkpoint,
        check=check,
        check_every=config.check_every,
        rng_device=device,
    )
    taught.unet.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _token_of(models: StableDiffusion, config: WordConfig) -> int:
    """Return the word's token id, after a check that the base can learn the word."""
    ours, found = build_scheduler().config, models.scheduler.config
    if any(found.get(key) != ours[key] for key in ("prediction_type", "rescale_betas_zero_snr", "num_train_timesteps")):
        raise ConfigError(
            "base", "not of the embedded kind: another noise schedule", "give one that was made by `base pretrain`"
        )
    width = int(models.text_encoder.config.hidden_size)
    if config.num_directions > width:
        raise ConfigError(
            "num_directions", f"{config.num_directions} of {width} that this base has", f"give at most {width}"
        )
    word = config.word
    tokens: Any = models.tokenizer(word, add_special_tokens=False).input_ids
    if len(tokens) != 1:
        raise ConfigError(
            "word", f"{word!r} is {len(tokens)} tokens in this base's vocabulary", "teach one that is a single token"
        )
    return int(tokens[0])


def texts_without(others: Corpus, word: str) -> list[str]:
    """Return long and short captions, prompts with the words of users' prompts, and the empty text.

    No text contains the word.
    """
    kept = [i for i, words in enumerate(others.defect_words) if word not in words]
    short = [short_caption(others.tones[i], others.materials[i], others.defect_words[i]) for i in kept]
    words = [w for w in RESERVED_WORDS if w != word]
    prompts = [
        f"an image of a {others.tones[i]} sks with a {words[at % len(words)]} defect"
        for at, i in enumerate(kept[: 4 * len(words)])
    ]
    return [*(others.captions[i] for i in kept), *short, *prompts, ""]


def _draw(models: StableDiffusion, captions: Sequence[str], path: Path) -> None:
    drawn = draw_captions(SamplingModels(backbone=models), captions, config=ScoreConfig())
    images = [image for batch in drawn for image in batch]
    if images:
        save_png(path, contact_sheet(images, columns=min(8, len(images)), cell_px=models.tile_px))


@torch.no_grad()
def _contexts(models: StableDiffusion, data: LatentCorpus, texts: Sequence[str]) -> Tensor:
    """Encode texts for the UNet, float32 [N,D], one row per token."""
    pieces = [data.tokenize(list(texts[start : start + 64])) for start in range(0, len(texts), 64)]
    return torch.cat([models.text_encoder(input_ids=ids).last_hidden_state.flatten(0, 1) for ids in pieces]).float()
