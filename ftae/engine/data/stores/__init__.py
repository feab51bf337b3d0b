"""Decoded images on the disk: what is used and what may go, and images that are decoded as they are needed."""
