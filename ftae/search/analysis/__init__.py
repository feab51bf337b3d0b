"""What a search tells of its params: which of them mattered, and where the good trials lie."""
