"""The training loop of every network, with data, caches, loss, schedule, checkpoints and events."""
