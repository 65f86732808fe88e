"""The frozen split: stratified over whole groups, or taken from the data set."""
