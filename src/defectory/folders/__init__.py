"""Folders made by Defectory: recognised by a marker file, replaced as a whole, never confused with a user's own.

- `marker`: the file that makes a folder ours and lists the files in it.
- `claims`: what may be written or replaced, checked before anything is made.
- `swap`: how a folder is made beside the old one, swapped in, recovered after a kill, and removed.
"""
