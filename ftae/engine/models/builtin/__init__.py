"""The networks of ftae itself, and how they become families."""
