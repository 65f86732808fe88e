"""pretraining room."""
