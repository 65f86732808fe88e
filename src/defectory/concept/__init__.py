"""Phase 1: learn the concept of the user's part."""
