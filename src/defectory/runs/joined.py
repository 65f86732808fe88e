"""Joins what several rounds of drafts made, so that later stages see one plan and one list of decisions."""

from __future__ import annotations

from collections.abc import Sequence

from defectory.artifacts.doubt import Doubts
from defectory.artifacts.plan import Decisions, Plan


def join_plans(plans: Sequence[Plan]) -> Plan:
    """Return the plan of all rounds; the networks that draw it are the same in each."""
    first = plans[0]
    return (
        first if len(plans) == 1 else first.model_copy(update={"jobs": tuple(j for plan in plans for j in plan.jobs)})
    )


def join_decisions(plan: Plan, decisions: Sequence[Decisions]) -> Decisions:
    """Return the decisions on all drafts of a joined plan."""
    joined = tuple(one for of in decisions for one in of.decisions)
    return decisions[0].model_copy(update={"plan_digest": plan.digest(), "decisions": joined})


def join_doubts(plan: Plan, doubts: Sequence[Doubts]) -> Doubts:
    """Return the doubt about all accepted drafts of a joined plan."""
    joined = tuple(draft for of in doubts for draft in of.drafts)
    return doubts[0].model_copy(update={"plan_digest": plan.digest(), "drafts": joined})
