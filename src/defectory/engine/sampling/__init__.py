"""sampling room."""
