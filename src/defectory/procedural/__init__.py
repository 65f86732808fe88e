"""The procedural world: rendered images of industrial surfaces with exact defect masks and captions. No torch."""
