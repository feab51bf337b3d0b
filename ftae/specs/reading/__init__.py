"""How files are read: YAML, the base class and roles of specs, problems with their places, overrides, formats."""
