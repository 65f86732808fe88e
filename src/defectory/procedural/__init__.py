"""The procedural world: images of industrial surfaces with exact defect masks and captions. No torch."""
