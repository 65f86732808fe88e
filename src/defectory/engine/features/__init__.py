"""Image features: the embedded encoder behind KID, FID and curation, and its training heads."""
