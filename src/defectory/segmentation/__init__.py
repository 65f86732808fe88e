"""The downstream segmenter: models, arms, training, prediction."""
