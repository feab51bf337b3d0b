"""What the workers of an own cluster import before they get a trial."""

from ftae.importing import importing

with importing():
    import ftae.search.trial  # noqa: F401
