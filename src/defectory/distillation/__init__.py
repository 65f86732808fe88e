"""Distillation: train a student that draws in a few steps what the guided pipeline draws in many."""
