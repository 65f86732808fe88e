"""Defectory: controllable synthesis of industrial defect images, and the measurement of what they are worth."""

__version__ = "0.1.0"
