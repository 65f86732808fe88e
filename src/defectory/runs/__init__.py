"""The run folder: a typed store of stage results, and the machinery that makes, checks and repairs it.

Knows what a stage is, but no stage in particular.
"""
