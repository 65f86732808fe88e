"""formats room."""
