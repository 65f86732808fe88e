"""The only code, with recipes, that knows the order of the rooms."""
