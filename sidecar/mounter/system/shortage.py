"""Errors by which a process says that others have used up a resource. Standard library only."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from sidecar import logs

log = logging.getLogger("sidecar.process")

_LACKING: Final = frozenset(
    (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
)
NO_THREAD: Final = "can't start new thread"  # Modules/_threadmodule.c


def lacks_resources(error: BaseException | None) -> bool:
    """Whether a process could not start because memory, threads, descriptors or disk are lacking.

    Also as the cause of another error.
    """
    while error is not None:
        if (
            isinstance(error, MemoryError)
            or (isinstance(error, OSError) and error.errno in _LACKING)
            or (isinstance(error, RuntimeError) and str(error) == NO_THREAD)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def exit_with(main: Callable[[], int]) -> NoReturn:
    """End this process with the result of ``main``, without waiting for its threads."""
    try:
        status = main()
    except BaseException as error:  # noqa: BLE001 - the process ends with it
        end_for(error, "the process ends")
    sys.stderr.flush()
    os._exit(status)


def end_for(error: BaseException | None, message: str) -> NoReturn:
    """End this process, which will be replaced. A lack of resources is reported in one line."""
    try:
        if lacks_resources(error):
            logs.event(log, f"{message}: it lacks resources", logging.ERROR, why=error)
            sys.stderr.flush()
            os._exit(os.EX_OSERR)
        log.critical(message, exc_info=error)
    finally:
        sys.stderr.flush()
        os._exit(os.EX_SOFTWARE)
