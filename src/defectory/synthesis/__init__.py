"""Synthesis: the plan, drafts drawn from drivers, calibration, insertion and export."""
