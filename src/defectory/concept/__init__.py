"""concept room."""
