"""What rooms share: the base, the training loop, samplers and encoders."""
