"""Measures and estimates what a run needs: parameters, bytes, seconds."""
