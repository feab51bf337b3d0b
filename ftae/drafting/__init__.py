"""Draft a search file: look at a model and at data, and write what fits both, with the reasons as comments."""
