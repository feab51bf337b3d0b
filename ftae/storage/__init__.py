"""Where a search lives: in a folder or an object store, with a journal and a lease."""
