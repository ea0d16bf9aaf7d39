"""What a benchmark tells its user instead of a traceback."""


class BenchFailure(Exception):
    """A contender, a server or the machine could not do what was asked: one line says what."""
