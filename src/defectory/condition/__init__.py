"""condition room."""
