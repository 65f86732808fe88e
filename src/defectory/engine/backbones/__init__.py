"""Which bases exist, how one is loaded, checked and saved, and the prompts they are given."""
