"""The one training loop of every network: data and caches, loss, schedule, loop, checkpoint, events."""
