"""base room."""
