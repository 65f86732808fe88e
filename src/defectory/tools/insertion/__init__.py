"""Reads the user's frames, places defects on them, and writes them back; see `tools.insert`."""
