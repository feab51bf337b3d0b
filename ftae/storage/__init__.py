"""Where a search lives: folder or object store, journal, lease."""
