"""The family of Stable Diffusion XL: two text encoders, a pooled text, and sizes as a condition."""
