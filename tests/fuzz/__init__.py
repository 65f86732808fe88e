"""Damaged inputs of every kind, drawn from fixed seeds."""
