"""The run folder: a typed store of what stages made, and the machinery that makes, checks and mends it.

Knows what a stage is, and no stage.
"""
