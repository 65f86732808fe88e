"""Phase 2: train a condition network that makes the adapted base follow drivers."""
