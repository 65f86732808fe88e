"""The stages of a run, one file each: what it reads, what its outcome depends on, and how it is made."""
