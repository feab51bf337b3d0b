"""What a tuned model is used for: scores, reconstructions, interpolations, samples."""
