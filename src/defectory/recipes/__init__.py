"""recipes room."""
