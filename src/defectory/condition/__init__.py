"""Phase 2: learn to obey drivers."""
