"""The plugin that fails skipped tests in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "tests.support.strict_skips"

MODULES = {
    "test_body.py": """
import pytest
def test_it():
    pytest.skip({reason!r})
""",
    "test_mark.py": """
import pytest
@pytest.mark.skip(reason={reason!r})
def test_it():
    pass
""",
    "test_module.py": """
import pytest
pytest.skip({reason!r}, allow_module_level=True)
""",
    "test_expected_failure.py": """
import pytest
@pytest.mark.xfail(reason={reason!r})
def test_it():
    assert False
""",
}


@pytest.mark.parametrize(
    ("ci", "reason", "status", "summary"),
    [
        ("true", "no server here", 1, " 1 failed, 1 xfailed, 2 errors in"),
        ("true", "kernel: no passthrough before 6.9", 0, " 3 skipped, 1 xfailed in"),
        ("", "no server here", 0, " 3 skipped, 1 xfailed in"),
    ],
)
def test_a_skip_fails_in_ci_unless_the_kernel_lacks_something(
    tmp_path, ci, reason, status, summary
):
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text.format(reason=reason))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        PLUGIN,
        "--continue-on-collection-errors",
    ]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert summary in done.stdout
    assert reason in done.stdout
    assert done.returncode == status
