"""Synthesis: the plan, full images from drivers, export."""
