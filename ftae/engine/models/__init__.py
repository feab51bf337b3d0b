"""Networks as staged models: autoencoders of every family, discriminators, and their weights in files."""
