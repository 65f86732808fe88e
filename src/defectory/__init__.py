"""Defectory: controllable synthesis of industrial defect images, and measurement of their value for training."""

__version__ = "0.1.0"
