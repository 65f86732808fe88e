"""Pretraining of the embedded base and its companions on the procedural world."""
