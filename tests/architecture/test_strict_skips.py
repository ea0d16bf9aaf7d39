"""In CI a skipped test is a failed one: the plugin that sees to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "tests.support.strict_skips"

SKIPPED_IN_BODY = """
    import pytest
    def test_it():
        pytest.skip({reason!r})
"""
SKIPPED_BY_MARK = """
    import pytest
    @pytest.mark.skip(reason={reason!r})
    def test_it():
        pass
"""
SKIPPED_MODULE = """
    import pytest
    pytest.skip({reason!r}, allow_module_level=True)
"""
EXPECTED_FAILURE = """
    import pytest
    @pytest.mark.xfail(reason={reason!r})
    def test_it():
        assert False
"""


@pytest.mark.parametrize("module", [SKIPPED_IN_BODY, SKIPPED_BY_MARK, SKIPPED_MODULE])
@pytest.mark.parametrize(
    ("ci", "reason", "fails"),
    [
        ("true", "no server here", True),
        ("true", "kernel: no passthrough before 6.9", False),
        ("", "no server here", False),
    ],
)
def test_a_skip_fails_in_ci_unless_the_kernel_lacks_something(tmp_path, module, ci, reason, fails):
    status, output = _run(tmp_path, module.format(reason=reason), ci)
    # pytest's statuses: 1 tests failed, 2 collection failed, 5 nothing ran.
    assert (status in (1, 2)) is fails, output
    assert ("skipped in CI" in output) is fails
    assert reason in output


def test_an_expected_failure_is_no_skip(tmp_path):
    status, output = _run(tmp_path, EXPECTED_FAILURE.format(reason="known"), "true")
    assert status == 0, output


def _run(folder, module, ci):
    lines = [line.removeprefix("    ") for line in module.splitlines()]
    (folder / "test_example.py").write_text("\n".join(lines))
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", PLUGIN, "--rootdir", folder, folder],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
