"""A search: which trials run, what they are judged by, and what is kept. The only importer of Optuna."""
