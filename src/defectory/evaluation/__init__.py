"""Evaluation: mask metrics of segmenters and image metrics of sets. No torch."""
