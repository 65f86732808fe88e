"""The report: one self-contained HTML file, outcome on top."""
