"""A pytest plugin: what this machine lacks is said before the first test, and not by failures.

Only where everything is to be run: one test, or one folder, may need less than the whole.
Loaded by pyproject.toml.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "scripts" / "preflight.sh"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts its processes
def pytest_sessionstart(session: pytest.Session) -> None:
    """Raise UsageError, which ends the run with status 4, with the script's lines."""
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or config.option.collectonly or hasattr(config, "workerinput"):
        return
    done = subprocess.run([_SCRIPT], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise pytest.UsageError(done.stderr.strip())
