"""Estimates time, memory and disk of the stages that would run, before anything is run."""
