"""The features that frozen first stages compute from images: computed once for each image, then read from disk."""
