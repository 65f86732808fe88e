"""Stable Diffusion 1.x and 2.x, and the embedded base, which has their layout."""
