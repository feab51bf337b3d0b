"""Images: sources, decoding, the cache, datasets, batches."""
