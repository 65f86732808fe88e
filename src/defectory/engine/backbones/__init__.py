"""Bases: the known families, and how a base is checked, loaded, saved and prompted."""
