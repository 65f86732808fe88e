"""Says what to write instead of a key or a value that cannot be used. Knows keys and words, no section."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence

OTHER_WORDS: Mapping[str, str] = {
    "arm": "arms",
    "batch": "batch_size",
    "cpu_threads": "threads",
    "dataset": "path",
    "epochs": "num_steps",
    "gpu": "device",
    "gpus": "training_processes",
    "inference_steps": "num_inference_steps",
    "iterations": "num_steps",
    "lr": "learning_rate",
    "max_steps": "num_steps",
    "model": "base",
    "num_epochs": "num_steps",
    "num_gpus": "training_processes",
    "num_train_steps": "num_steps",
    "num_workers": "num_processes",
    "out_dir": "out",
    "outdir": "out",
    "output": "out",
    "output_dir": "out",
    "resolution": "tile_px",
    "run_folder": "out",
    "steps": "num_steps",
    "token": "instance_token",
    "train_batch_size": "batch_size",
    "workers": "num_processes",
}
"""Maps words that other programs use, or that come to mind, to the last part of our keys."""
COUNTED_BY_LISTS = frozenset({"segmentation.seeds"})
"""Settings whose list is often taken for a count."""
MAX_NAMED = 5
MAX_SHOWN = 120
"""Longer corrections are not written out."""
MAX_COUNTED = 10


def keys_like(key: str, known: Collection[str]) -> list[str]:
    """Return the settings that an unknown key may mean, the likeliest first; empty if there is no match.

    Args:
        key: dotted, as it was written.
        known: all settings.
    """
    section, _, last = key.rpartition(".")
    word = OTHER_WORDS.get(last, last)
    in_section = [name for name in known if section and name.startswith(f"{section}.")]
    around = [name for name in known if section and name.startswith(f"{section.partition('.')[0]}.")]
    elsewhere = [name for name in known if _last(name) == word]
    for names in (in_section, around):
        exact = [name for name in names if _last(name) == word]
        if exact or len(elsewhere) == 1:
            return (exact or elsewhere)[:MAX_NAMED]
        close = difflib.get_close_matches(word, [_last(name) for name in names], n=1, cutoff=0.6)
        if close:
            return [name for name in names if _last(name) == close[0]][:MAX_NAMED]
    if elsewhere:
        return elsewhere[:MAX_NAMED]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or difflib.get_close_matches(
        last, [_last(name) for name in known], n=1
    )
    return [name for name in known if close and close[0] in (name, _last(name))][:MAX_NAMED]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def either(names: Sequence[str]) -> str:
    """Join names as a question offers them: `'a', 'b' or 'c'`."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def list_hint(key: str, value: object, *, on_command_line: bool) -> str:
    """Return how to write a list, for a value that was not one.

    Args:
        key: dotted.
        value: what was found.
        on_command_line: the value stands in an option, where a shell needs quotes.
    """

    def written(items: Sequence[object]) -> str:
        text = json.dumps(list(items), separators=(",", ":"), ensure_ascii=False, default=str)
        return f"-o {shlex.quote(f'{key}={text}')}" if on_command_line else f"{_last(key)} = {text}"

    if key in COUNTED_BY_LISTS and isinstance(value, int) and 1 < value <= MAX_COUNTED:
        return f"write `{written(range(value))}` for {value} of them, or `{written([value])}` for {value} alone"
    items = [part.strip(" '\"") for part in value.strip("[] ").split(",")] if isinstance(value, str) else [value]
    shown = written([_number_or_text(item) for item in items])
    return f"write `{shown}`" if len(shown) <= MAX_SHOWN else f"write a list in brackets, as in `{written(['...'])}`"


def _number_or_text(item: object) -> object:
    return int(item) if isinstance(item, str) and item.isdecimal() else item
