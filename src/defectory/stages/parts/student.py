"""Says whether drafts are drawn with a distilled student, and with which settings."""

from __future__ import annotations

from defectory.artifacts.distilled import Distilled
from defectory.config.project import ProjectConfig
from defectory.distillation.config import DistillationConfig
from defectory.report.content import Table
from defectory.runs.store import RunStore
from defectory.runs.stored import DistilledFolder
from defectory.synthesis.config import SynthesisConfig

DISTILL = "distill"


def distills(config: ProjectConfig) -> bool:
    """Check whether a run has the stage `distill`."""
    return config.distillation.enabled


def student_stage(config: ProjectConfig) -> tuple[str, ...]:
    """Return the name of the stage that a stage which draws has to read; empty if nothing is distilled."""
    return (DISTILL,) if distills(config) else ()


def kept_student(inputs: RunStore, config: ProjectConfig) -> DistilledFolder | None:
    """Return the student that drafts are drawn with; None if there is none, or its drafts differ too much."""
    if not distills(config):
        return None
    found = inputs.distilled
    return found if found.distilled.is_kept else None


def as_drawn(synthesis: SynthesisConfig, student: DistilledFolder | None) -> SynthesisConfig:
    """Return the settings that drafts are drawn with: a student has its own steps, and has learned its guidance."""
    return synthesis if student is None else _few_steps(synthesis, student.distilled.num_inference_steps)


def _few_steps(synthesis: SynthesisConfig, num_inference_steps: int) -> SynthesisConfig:
    # the student's backbone names its scheduler
    learned = {"guidance_scale": 1.0, "driver_guidance": 1.0}
    return synthesis.model_copy(update={"scheduler": "base", "num_inference_steps": num_inference_steps, **learned})


def expected_synthesis(config: ProjectConfig) -> SynthesisConfig:
    """Return the settings that drafts will be drawn with if the student is kept, without reading any result."""
    if not distills(config):
        return config.synthesis
    return _few_steps(config.synthesis, config.distillation.num_inference_steps)


def what_differs(value: Distilled, limits: DistillationConfig) -> list[str]:
    """Say in which ways a student's drafts differ too much from its teacher's; empty if it may draw."""
    failures: list[str] = []
    if value.fidelity_loss > limits.max_fidelity_loss:
        failures.append(
            f"fidelity {value.student_fidelity:.3f} instead of {value.teacher_fidelity:.3f}, a loss of "
            f"{value.fidelity_loss:.1%} where {limits.max_fidelity_loss:.1%} is allowed"
        )
    if abs(value.detail_change) > limits.max_detail_change:
        more = "more" if value.detail_change > 0 else "less"
        failures.append(
            f"its drafts hold {abs(value.detail_change):.1%} {more} fine detail than the teacher's, where "
            f"{limits.max_detail_change:.1%} is allowed"
        )
    if value.gap_closed < limits.min_gap_closed:
        failures.append(
            f"its drafts are {value.student_distance:.1f} grey levels from the teacher's, and were "
            f"{value.untrained_distance:.1f} before training: {max(value.gap_closed, 0):.0%} of the way, where "
            f"{limits.min_gap_closed:.0%} is wanted"
        )
    return failures


def student_table(learned: Distilled) -> Table:
    """Build the table that compares the drafts of a student with those of its teacher."""
    use = "draws the drafts" if learned.is_kept else "is not used, since its drafts differ too much"
    return Table(
        title=f"Drawing in {learned.num_inference_steps} steps: the student {use}",
        columns=["", "fidelity", "fine detail, grey levels", "distance from the teacher, grey levels"],
        rows=[
            ["teacher", f"{learned.teacher_fidelity:.3f}", f"{learned.teacher_detail:.1f}", ""],
            [
                f"student, {learned.num_inference_steps} steps",
                f"{learned.student_fidelity:.3f}",
                f"{learned.student_detail:.1f}",
                f"{learned.student_distance:.1f}",
            ],
        ],
        note=f"Both drew {learned.num_drafts} drafts on drivers of train tiles, with the same seeds. Before its "
        f"training, the student was {learned.untrained_distance:.1f} grey levels from the teacher.",
    )
