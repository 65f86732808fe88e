"""What several stages share: tiles, masks, drawings and networks of a run as values, and the parts of the report."""
