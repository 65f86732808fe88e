"""dataset room."""
