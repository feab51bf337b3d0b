"""Images: sources, decoding, cache, data sets, batches."""
