"""Shared machinery of training and sampling: bases, the training loop, samplers and encoders."""
