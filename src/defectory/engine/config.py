"""Settings that both phases and synthesis share: the words of prompts, and augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section

MixedPrecision = Literal["auto", "no", "bf16"]
"""As accelerate names it: `bf16` autocasts, `no` keeps fp32. `auto` is `bf16` where the device has instructions for
it.
"""


class PromptConfig(Section):
    """Words of every prompt, in both phases and in synthesis (paper, sections 3.1 and 3.2)."""

    instance_token: str = Field(default="sks", min_length=1)
    """Rare token [V] that stands for the part in prompts."""
    class_noun: str = Field(default="industrial surface", min_length=1)
    """Class of the part in plain words, as in the prompt `a [class noun]` of the class images."""
    defect_noun: str = ""
    """Word after each class name. The paper uses `crack`, since its classes are kinds of crack."""
    tone_words: bool = True
    """Put two words for a tile's lightness and contrast before [V]. Without them (the paper) drafts drift to the mean
    tone, since a driver carries no brightness.
    """


class AugmentationConfig(Section):
    """How tiles may be changed, in both phases and in the augmented pool."""

    flip: bool = True
    """Mirror tiles, and rotate square tiles by quarter turns. Turn it off if orientation matters."""
