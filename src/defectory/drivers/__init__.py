"""Topological driver images: extract them from images and choose their constants. No torch."""
