"""The networks of generative adversarial models, written from their papers in plain PyTorch."""
