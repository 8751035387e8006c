"""Whom TLS connections believe: the public roots."""

import ssl
from functools import cache

import certifi


@cache
def public_roots() -> ssl.SSLContext:
    """One for all clients: reading the roots costs 30 ms. It holds no secret, so a snapshot may keep it."""
    return ssl.create_default_context(cafile=certifi.where())
