"""Says what needs less memory when a stage ran out of it."""

from __future__ import annotations

from defectory.config.presets import GPU_PRESETS, PRESETS, next_smaller
from defectory.config.project import ProjectConfig
from defectory.config.resolve import flatten
from defectory.errors import StageError

SIGNS = ("out of memory", "can't allocate memory")
TRAINING = {"learn-concept": "concept.training", "learn-condition": "condition.training"}
DRAWING = ("calibrate", "synthesize")


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error says that memory ran out, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in SIGNS)


def out_of_memory(stage: str, config: ProjectConfig) -> StageError:
    """Return the error of a stage that ran out of memory, with what takes less.

    Args:
        stage: its name.
        config: of the run.
    """
    return StageError(f"{stage}: out of memory; {_advice(stage, config)}, and run again")


def preset_of(config: ProjectConfig) -> str | None:
    """Return the GPU preset whose training settings a configuration has; None if there is none."""
    values = flatten(config.model_dump(mode="json"))
    for name in GPU_PRESETS:
        wanted = flatten({section: PRESETS[name][section] for section in ("concept", "condition")})
        if all(values.get(key) == value for key, value in wanted.items()):
            return name
    return None


def _advice(stage: str, config: ProjectConfig) -> str:
    if (section := TRAINING.get(stage)) is not None:
        # presets differ in how both phases train
        if (smaller := next_smaller(preset_of(config))) is not None:
            return f'the preset that needs less is "{smaller}": set `preset` in the project file'
        training = config.concept.training if stage == "learn-concept" else config.condition.training
        if training.batch_size > 1:
            more = 2 * training.gradient_accumulation_steps
            half = training.batch_size // 2
            return f"set {section}.batch_size to {half} and {section}.gradient_accumulation_steps to {more}"
        if not training.gradient_checkpointing:
            return f"set {section}.gradient_checkpointing to true"
        if training.optimizer == "adamw":
            return f'set {section}.optimizer to "adamw8bit"'
        if stage == "learn-concept" and config.concept.method == "dreambooth":
            return 'set concept.method to "lora"'
    if stage in DRAWING and config.synthesis.batch_size > 1:
        return f"set synthesis.batch_size to {config.synthesis.batch_size // 2}"
    if stage.startswith("segment") and config.segmentation.batch_size > 1:
        return f"set segmentation.batch_size to {config.segmentation.batch_size // 2}"
    return "close other programs, or take smaller images or tiles"
