"""The commands. Every heavy import is inside its command."""
