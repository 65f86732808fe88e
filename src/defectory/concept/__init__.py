"""Phase 1: teach a base the concept of the user's part."""
