"""The command line: one module per group of verbs, each a thin layer over the API."""
