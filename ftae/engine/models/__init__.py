"""Networks as ordered stages: families, weights in and out."""
