"""The family of Stable Diffusion 1.x and 2.x, and of the embedded base, which has the same layout."""
