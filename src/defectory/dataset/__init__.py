"""Data sets: import, check, split, and cut into tiles and frames. No torch."""
