"""Fixtures every test may ask for; nothing starts before one does."""

import signal

pytest_plugins = ["tests.support.fixtures"]

# Started in the background of a shell, this process ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
