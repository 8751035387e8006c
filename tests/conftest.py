"""Fixtures every test may ask for; nothing starts before one does."""

pytest_plugins = ["tests.support.fixtures"]
