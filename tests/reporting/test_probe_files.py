"""Probes without a port: the commands that the injector writes, at a sidecar that has none."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from sidecar.spec import STATE_ROOT, TERMINATION_MESSAGE, Http
from tests.control.injection.golden import catalogue
from tests.support.sidecar import Sidecar


def probes(sidecar: Sidecar, name: str) -> bool:
    """Whether a probe of an injected pod succeeds, with the paths of this sidecar."""
    annotations = {"mount-sidecar.io/port": "none", "mount-sidecar.io/data": "[]"}
    pod = {
        "metadata": {"annotations": {**annotations, "mount-sidecar.io/outputs": "models"}},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    }
    container = inject(pod, catalogue(), Injection())["spec"]["initContainers"][0]
    command = [
        word.replace(STATE_ROOT, str(sidecar.state)).replace(
            TERMINATION_MESSAGE, str(sidecar.termination_message)
        )
        for word in container[name]["exec"]["command"]
    ]
    return subprocess.run(command, check=False).returncode == 0


def test_a_sidecar_without_a_port_is_started_and_alive(tmp_path: Path) -> None:
    with Sidecar(tmp_path, [], http=Http(port=None)) as sidecar:
        sidecar.wait_for(lambda: probes(sidecar, "startupProbe"))
        assert probes(sidecar, "livenessProbe")
        assert sidecar.status()["http_port"] is None
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True)
        for pid in sidecar.processes():
            assert f"pid={pid}," not in listening.stdout
        assert sidecar.stop() == 0


def test_what_an_earlier_container_left_says_nothing(tmp_path: Path) -> None:
    with Sidecar(tmp_path, [], http=Http(port=None)) as sidecar:
        sidecar.wait_for(lambda: probes(sidecar, "startupProbe"))
        sidecar.kill()
        sidecar.termination_message.unlink()
        sidecar.termination_message.write_text("")  # as a kubelet does for the next container
        assert not probes(sidecar, "startupProbe")
        sidecar.start()
        sidecar.wait_for(lambda: probes(sidecar, "startupProbe"))


def test_a_supervisor_that_hangs_is_not_alive(tmp_path: Path) -> None:
    with Sidecar(tmp_path, [], http=Http(port=None)) as sidecar:
        sidecar.wait_for(lambda: probes(sidecar, "livenessProbe"))
        supervisor = min(sidecar.processes())
        os.kill(supervisor, signal.SIGSTOP)
        try:
            sidecar.wait_for(lambda: not probes(sidecar, "livenessProbe"))
        finally:
            os.kill(supervisor, signal.SIGCONT)
        sidecar.wait_for(lambda: probes(sidecar, "livenessProbe"))


def test_with_a_port_the_files_are_there_too(tmp_path: Path) -> None:
    """A mesh that comes later makes commands of the probes."""
    with Sidecar(tmp_path, []) as sidecar:
        sidecar.wait_for(lambda: probes(sidecar, "startupProbe"))
        assert probes(sidecar, "livenessProbe")
