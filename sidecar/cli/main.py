"""Runs a command line, prints its error in one line, and chooses the exit status.

Each command is a function, which imports what it needs when it runs, so that `sidecar resolve`
does not load the stores' SDKs. Commands raise errors of :mod:`sidecar.errors`.
"""

from __future__ import annotations

import os
import sys

import click

from sidecar.cli import control, mounter  # noqa: F401 - they add their commands
from sidecar.cli.group import cli, tell
from sidecar.errors import EXIT_OK, SidecarError, UsageError

# As a shell reports a program that a signal has ended: 128 + SIGINT, 128 + SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; the exit status.

    Args:
        arguments: without the program's name; None: those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Not cli.main(), which prints usage errors in another form, and exits with 1 at a signal.
        with cli.make_context("sidecar", list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as wrong:
        return _report(_usage_error(wrong))
    except SidecarError as error:
        return _report(error)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output again at exit, which would fail and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return EXIT_OK


def _usage_error(wrong: click.ClickException) -> UsageError:
    message = wrong.format_message().rstrip(".")
    context = wrong.ctx if isinstance(wrong, click.UsageError) else None
    command = context.command_path if context else "sidecar"
    return UsageError(message[:1].lower() + message[1:], f"see `{command} --help`")


def _report(error: SidecarError) -> int:
    tell(error.line())
    return error.exit_status
