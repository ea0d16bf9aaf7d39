"""The command group, and what several commands use."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import click

from sidecar import __version__
from sidecar.errors import ConfigError, SpecChanged, UsageError, printable

STANDARD_INPUT = "-"
PORT = click.IntRange(0, 65535)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar", message="%(prog)s %(version)s")
def cli() -> None:
    """Cloud buckets as directories for experiment pods."""


def tell(line: str) -> None:
    """A line for people, on standard error."""
    click.echo(printable(line), err=True)


def read_text(path: str, error: type[ConfigError], *, sha256: str | None = None) -> tuple[str, str]:
    """The text of a file, or of standard input for ``-``, and its name for messages.

    Args:
        sha256: the expected digest of the bytes, in hexadecimal; None: any.

    Raises:
        UsageError: the file cannot be read.
        SpecChanged: the digest is another one.
        ConfigError: it is not UTF-8; of the class ``error``.
    """
    where = "standard input" if path == STANDARD_INPUT else path
    try:
        content = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise SpecChanged(
                f"{where}: is not the spec that this container was made for (`--spec-sha256`)",
                "make the pod anew",
            )
        return content.decode("utf-8-sig"), where
    except OSError as failure:
        raise UsageError(f"cannot read `{where}`: {failure.strerror}") from None
    except ValueError as failure:
        if not isinstance(failure, UnicodeDecodeError):  # NUL in the path
            raise UsageError(f"cannot read `{path!r}`: not a path") from None
        raise error(f"{where}: not UTF-8 (byte {failure.start})") from None
