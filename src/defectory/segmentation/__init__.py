"""The downstream segmenter: model families, training arms, training and prediction."""
