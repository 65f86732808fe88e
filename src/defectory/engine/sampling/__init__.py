"""Sampling: schedulers by name, guidance, and one noise stream per sample."""
