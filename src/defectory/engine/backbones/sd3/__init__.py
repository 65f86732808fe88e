"""The family of Stable Diffusion 3 and 3.5: a transformer, flow matching, and two or three text encoders."""
