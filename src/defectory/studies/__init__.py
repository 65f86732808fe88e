"""Studies: one project run with several amounts of labelled images, seeds, folds and settings, and what came of it."""
