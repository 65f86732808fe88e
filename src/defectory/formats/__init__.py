"""Data set formats: one module per format, with load and save side by side. No torch."""
