"""Weights in folders, single files and on the hub: found, read, named, scaled and written."""
