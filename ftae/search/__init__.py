"""Searching: the only importer of ray.tune and optuna.

Ray reads how it authenticates while it is imported, so that is set here, before any module of this package imports Ray.
"""

import os
import secrets
import sys

from ftae.search.ray import address

if "ray" not in sys.modules and address.is_own():
    # A Ray of this process's own answers to nobody else.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
