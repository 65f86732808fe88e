"""artifacts room."""
