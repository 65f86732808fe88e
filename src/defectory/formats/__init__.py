"""Data set formats: one file per format, load and save side by side. No torch."""
