"""Samplers: schedulers by name, one noise stream per sample, batches."""
