"""What can go wrong on the way to a running local stack, in words for the person at the terminal."""


class StartFailed(Exception):
    """A part did not come up. The message is one line: what is missing and what to do about it."""
