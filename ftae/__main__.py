"""``python -m ftae``: the same commands as the ``ftae`` script."""

from ftae.cli import main

main()
