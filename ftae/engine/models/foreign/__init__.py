"""Weights of other programs: read without running code, renamed, and written as models of ftae."""
