"""Evaluation: mask metrics of segmenters and image metrics of tile sets. No torch."""
