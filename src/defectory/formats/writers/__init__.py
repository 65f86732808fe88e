"""Formats out, one file each: images and instances as the folder that other tools open. Torch is not needed."""
