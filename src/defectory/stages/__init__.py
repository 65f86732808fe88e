"""The stages of a run, one file each: what a stage reads, what its result depends on, and how it is made."""
