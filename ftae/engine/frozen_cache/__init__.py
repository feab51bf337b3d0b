"""The frozen start of a model, computed once for each image."""
