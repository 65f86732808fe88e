"""The one training loop both phases share: data and caches, loss, loop, checkpoint, events."""
