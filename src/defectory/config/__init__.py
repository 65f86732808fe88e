"""Configuration of a project: its file, presets, settings and how they are resolved."""
