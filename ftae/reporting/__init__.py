"""One HTML file that shows what a search has found: a projection of its journal."""
