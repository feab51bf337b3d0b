"""The commands: each parses its options, calls ``ftae.api`` and prints. Heavy imports are inside the commands."""
