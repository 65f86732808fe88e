"""The report: one self-contained HTML file with the verdict on top."""
