"""The error that the command prints as one line instead of a traceback."""


class BenchFailure(Exception):
    """A contender, a server or the machine failed; the message is one line."""
