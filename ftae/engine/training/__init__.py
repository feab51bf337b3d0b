"""The training loop: trainer, evaluation, checkpoints, several workers."""
