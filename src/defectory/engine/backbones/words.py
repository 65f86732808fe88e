"""Checks that a base's tokenizer files know ordinary words. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from defectory.engine.backbones.files import read_json, require_file
from defectory.errors import WeightsError

WORDS = ("an", "image", "of", "a", "surface", "with", "crack", "scratch", "part")
"""Ordinary words of prompts, with letters of every CLIP vocabulary."""
WORD_END = "</w>"
COPY_AGAIN = "copy tokenizer/ of the base again"


def verify_tokenizer(folder: Path) -> None:
    """Check that the files of a CLIP tokenizer exist and spell ordinary words.

    A tokenizer without its vocabulary still loads, and maps every word to the unknown token.

    Args:
        folder: `tokenizer/` of a base, with `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        WeightsError: a file is missing or damaged, or ordinary words are unknown.
    """
    whole = folder / "tokenizer.json"
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not whole.exists() and not (vocab.exists() and merges.exists()):
        missing = (
            "merges.txt"
            if vocab.exists()
            else "vocab.json"
            if merges.exists()
            else "tokenizer.json, or vocab.json and merges.txt"
        )
        raise WeightsError(folder, f"{missing} is missing, so every word would be unknown", COPY_AGAIN)
    if vocab.exists() or merges.exists():
        _verify_words(vocab, read_json(vocab), _merges_of(merges))
    if whole.exists():
        model = read_json(whole).get("model")
        known, joined = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
        if not isinstance(known, dict) or not isinstance(joined, list):
            raise WeightsError(whole, "holds no vocabulary with merges, as CLIP's tokenizers do", COPY_AGAIN)
        _verify_words(whole, known, [_pair(entry) for entry in joined])


def _merges_of(path: Path) -> list[str | None]:
    require_file(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise WeightsError(path, "is not UTF-8 text", COPY_AGAIN) from None
    except OSError as error:
        raise WeightsError(
            path, f"cannot be read ({(error.strerror or str(error)).lower()})", "check the disk"
        ) from None
    return [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]


def _pair(entry: object) -> str | None:
    """Return the joined pair of a merge (`a b`, or a list of the two); None if it is not a merge."""
    parts = entry.split(" ") if isinstance(entry, str) else entry
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return "".join(str(part) for part in parts)
    return None


def _verify_words(where: Path, vocab: Mapping[str, Any], merges: Iterable[str | None]) -> None:
    if any(not isinstance(number, int) or isinstance(number, bool) or number < 0 for number in vocab.values()):
        raise WeightsError(where, "gives a word no number", COPY_AGAIN)
    lost = next(
        (word for word in WORDS if any(letter not in vocab for letter in (*word[:-1], word[-1] + WORD_END))), None
    )
    if lost is not None:
        raise WeightsError(where, f"does not know the letters of {lost!r}, so words would be unknown", COPY_AGAIN)
    joined = list(merges)
    if not joined or None in joined:
        raise WeightsError(where, "its merges are missing or damaged, so words fall apart", COPY_AGAIN)
    unknown = sum(1 for word in joined if word not in vocab)
    if unknown:
        raise WeightsError(where, f"{unknown} of {len(joined)} merges give words that the vocabulary lacks", COPY_AGAIN)
