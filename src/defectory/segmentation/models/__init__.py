"""Families of segmenters, one file each; `registry` finds them by name."""
