"""`scripts/build-image.sh` names the programs that it lacks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = "podman runc mmdebstrap"


def test_without_its_programs_it_says_so_in_one_line(tmp_path: Path) -> None:
    clone, tools = tmp_path / "clone", tmp_path / "tools"
    for part in ("scripts", "sidecar"):
        shutil.copytree(ROOT / part, clone / part)
    tools.mkdir()
    for name in ("bash", "dirname", "id", "sed"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [clone / "scripts" / "build-image.sh"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"build-image: needs {PROGRAMS}: apt-get install {PROGRAMS} debian-archive-keyring\n",
    )
