"""synthesis room."""
