"""Image files: finding them, opening them, and decoding them as a spec says."""
