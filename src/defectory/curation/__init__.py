"""Curation: counterfactual fidelity and decisions. No torch."""
