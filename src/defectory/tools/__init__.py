"""Work on a user's own images and data outside a run: insertion, drivers, mask review, export and pretraining."""
