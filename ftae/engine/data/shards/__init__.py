"""Images in shards: tar files as WebDataset names them, Parquet, or zip; local or in an object store."""
