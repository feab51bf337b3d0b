"""A tuned model in use: evaluate, reconstruct, interpolate, sample, serve."""
