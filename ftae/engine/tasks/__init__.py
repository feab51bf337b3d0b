"""What a training step does with the networks."""
