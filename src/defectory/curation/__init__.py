"""Curation: score each draft by counterfactual fidelity and other checks, and accept or reject it. No torch."""
