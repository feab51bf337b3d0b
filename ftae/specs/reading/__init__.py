"""Reading what a file holds: the base of specs, problems with their places, names, overrides, formats."""
