"""Says what to write instead of an option that a verb does not have."""

from __future__ import annotations

from collections.abc import Mapping

STEPS = (
    "`-o concept.training.num_steps=N`, `-o condition.training.num_steps=N` and `-o segmentation.num_steps=N` set the "
    "steps of training, `-o synthesis.num_inference_steps=N` those of drawing"
)
BATCH_SIZE = (
    "`-o concept.training.batch_size=N`, `-o condition.training.batch_size=N`, `-o segmentation.batch_size=N` and "
    "`-o synthesis.batch_size=N` set it"
)
LEARNING_RATE = (
    "`-o concept.training.learning_rate=X`, `-o condition.training.learning_rate=X` and "
    "`-o segmentation.learning_rate=X` set it"
)
RUN_FOLDER = "the run folder is a setting: `-o out=FOLDER`"
RESUMES = "a run resumes by itself: `defectory run` again"
DEVICE = "`--device cuda` computes on a GPU, `--device cpu` on the CPU"
GPUS = "`-o training_processes=N` trains phases 1 and 2 on N GPUs together"

OF_PROJECTS: Mapping[str, str] = {
    "--arms": '`-o \'segmentation.arms=["real","synthetic"]\'` sets it',
    "--base": "`-o base=FOLDER` sets it",
    "--batch-size": BATCH_SIZE,
    "--config": "the project file stands alone, without an option: `defectory run project.toml`",
    "--continue": RESUMES,
    "--cpu": DEVICE,
    "--cuda": DEVICE,
    "--data": "`-o data.path=PATH` sets it",
    "--epochs": f"training is counted in steps: {STEPS}",
    "--force": "a stage runs again when its settings or inputs change; `--yes` does not ask before it",
    "--gpu": DEVICE,
    "--gpus": GPUS,
    "--learning-rate": LEARNING_RATE,
    "--lr": LEARNING_RATE,
    "--model": "`-o base=FOLDER` sets the base, `-o segmentation.model=NAME` the segmenter",
    "--name": "`-o name=NAME` sets it",
    "--num-gpus": GPUS,
    "--num-images": "`-o synthesis.num_images=N` sets it",
    "--num-processes": GPUS,
    "--num-steps": STEPS,
    "--out": RUN_FOLDER,
    "--output": RUN_FOLDER,
    "--output-dir": RUN_FOLDER,
    "--resume": RESUMES,
    "--seeds": "`-o 'segmentation.seeds=[0,1,2]'` sets the seeds of segmenters, `--seed N` that of the project",
    "--stage": "`--only STAGE` runs one stage, `defectory STAGE` that stage and all that it needs",
    "--steps": STEPS,
    "--threads": "`-o threads=N` sets it",
    "--until": "`defectory STAGE` runs all stages up to that one",
    "--workers": "`-o num_processes=N` sets how many segmenters are trained side by side",
}
"""What to do instead, for verbs that take a project and `-o`, by option."""
OF_ALL: Mapping[str, str] = {"-h": "`--help` shows all options", "-v": "`defectory --version` prints the version"}
"""The same for every verb."""


def hint_of(option: str, *, takes_settings: bool) -> str | None:
    """Return what to do instead of an unknown option; None if nothing is known.

    Args:
        option: as it was written, without a value.
        takes_settings: whether the verb takes a project and `-o KEY=VALUE`.
    """
    name = option.replace("_", "-")
    return OF_ALL.get(name) or (OF_PROJECTS.get(name) if takes_settings else None)
