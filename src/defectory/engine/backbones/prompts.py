"""Makes the prompts of both phases, as in the paper and with our additions."""

from __future__ import annotations

from collections.abc import Sequence


def concept_prompt(token: str, tone: str = "") -> str:
    """Make the prompt of a defect-free tile, `an image of a [V]`; the paper's phase 1 has it for every tile.

    Args:
        token: [V].
        tone: words for the tile's tones before it (ours, since a driver carries no brightness); empty for the paper's
            prompt.
    """
    return f"an image of a {tone} {token}" if tone else f"an image of a {token}"


def class_prompt(noun: str) -> str:
    """Make the prompt of the class images, `a [class noun]`."""
    return f"a {noun}"


def condition_prompt(token: str, class_names: Sequence[str], *, defect_noun: str = "", tone: str = "") -> str:
    """Make the prompt of a tile, `an image of a [V] with a [class] crack`, several classes joined by `and`.

    Args:
        token: [V].
        class_names: class of each defect; each class is named once, in this order; empty gives the concept prompt.
        defect_noun: word after each class name that does not contain it. The paper uses `crack`, since its classes are
            kinds of crack; leave it empty if class names are complete.
        tone: words for the tile's tones, as for `concept_prompt`.
    """
    phrases: list[str] = []
    for name in dict.fromkeys(class_names):
        words = name.replace("_", " ").replace("-", " ").lower().split()
        if defect_noun and defect_noun.lower() not in words:
            words.append(defect_noun.lower())
        phrases.append("a " + " ".join(words))
    start = concept_prompt(token, tone)
    return f"{start} with {' and '.join(phrases)}" if phrases else start
