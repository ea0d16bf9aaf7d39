"""A pytest plugin: reports what this machine lacks before the first test.

Only in runs of all tests: one test, or one folder, may need less. Loaded by pyproject.toml.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "scripts" / "preflight.sh"


@pytest.hookimpl(tryfirst=True)  # Before pytest-xdist starts its processes.
def pytest_sessionstart(session: pytest.Session) -> None:
    """Raise UsageError (exit status 4) with the script's lines."""
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or config.option.collectonly or hasattr(config, "workerinput"):
        return
    done = subprocess.run([_SCRIPT], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise pytest.UsageError(done.stderr.strip())
