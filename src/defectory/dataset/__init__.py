"""Data in: import, check, frozen split, tiles and frames. No torch."""
