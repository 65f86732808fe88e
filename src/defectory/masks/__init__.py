"""The mask bank: which masks may be used at synthesis, how they are perturbed and placed. No torch."""
