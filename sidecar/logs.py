"""Structured logs: one logfmt line for each state change, on standard error.

Standard library only, since the supervisor logs too. Single operations are counted in metrics,
not logged. No secret reaches a logger: whatever holds one hides it in its ``repr``.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@+,%")


class LogfmtFormatter(logging.Formatter):
    """``time=… level=… component=… [volume=…] msg="…" [code=…]``."""

    def __init__(self, component: str, volume: str = "") -> None:
        super().__init__()
        self._context = f"component={component}" + (f" volume={_value(volume)}" if volume else "")

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, whatever characters are in it."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = (
            f"time={moment}.{int(record.msecs):03d}Z level={record.levelname.lower()}"
            f" {self._context} msg={_value(record.getMessage())}"
        )
        fields = getattr(record, "fields", {})
        text += "".join(f" {key}={_value(str(value))}" for key, value in fields.items())
        if record.exc_info:
            text += f" traceback={_value(self.formatException(record.exc_info))}"
        return text


def set_up(component: str, volume: str = "") -> None:
    """Send every log line of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter(component, volume))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)  # the SDKs log each request at INFO
    logging.getLogger("sidecar").setLevel(logging.INFO)


def event(log: logging.Logger, message: str, level: int = logging.INFO, **fields: object) -> None:
    """Log a state change, with fields that become ``key=value``."""
    log.log(level, message, extra={"fields": fields})


def _value(text: str) -> str:
    return text if text and set(text) <= _PLAIN else json.dumps(text)
