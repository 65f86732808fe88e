"""Values that stages exchange through the run folder: data sets, splits, tiles, plans, decisions and scores."""
