"""Masks for synthesis: the mask bank, other mask sources, perturbation and placement."""
