"""Training: clips and segments of them, one loop for every model, and a short file per objective."""
