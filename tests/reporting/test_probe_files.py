"""Probes that are commands, as the injector writes them, at a sidecar without a port."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from sidecar.contract.spec import STATE_ROOT, TERMINATION_MESSAGE, Http
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from tests.control.injection.golden import catalogue
from tests.support.sidecar import Sidecar


def command_of(sidecar: Sidecar, name: str) -> list[str]:
    """The command of an injected pod's probe, with the paths of this sidecar."""
    annotations = {"mount-sidecar.io/port": "none", "mount-sidecar.io/data": "[]"}
    pod = {
        "metadata": {"annotations": {**annotations, "mount-sidecar.io/outputs": "models"}},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    }
    container = inject(pod, catalogue(), Injection())["spec"]["initContainers"][0]
    return [
        word.replace(STATE_ROOT, str(sidecar.state)).replace(
            TERMINATION_MESSAGE, str(sidecar.termination_message)
        )
        for word in container[name]["exec"]["command"]
    ]


def is_alive(sidecar: Sidecar) -> bool:
    """Whether the liveness probe succeeds."""
    return subprocess.run(command_of(sidecar, "livenessProbe"), check=False).returncode == 0


def wait_for_startup(sidecar: Sidecar) -> None:
    """Return when the startup probe has succeeded, which is asked once."""
    subprocess.run(command_of(sidecar, "startupProbe"), check=True, timeout=60)


@pytest.mark.parametrize("http", [Http(port=None), None], ids=["no port", "a port"])
def test_one_startup_probe_is_enough(tmp_path: Path, http: Http | None) -> None:
    """Each that fails is an event of a pod that is well. It may come before anything is there."""
    sidecar = Sidecar(tmp_path, [], http=http)
    with subprocess.Popen(command_of(sidecar, "startupProbe")) as probe, sidecar:
        try:
            assert probe.wait(60) == 0
            assert sidecar.status()["ready"]
        finally:
            probe.kill()


def test_a_sidecar_without_a_port_is_started_and_alive(tmp_path: Path) -> None:
    with Sidecar(tmp_path, [], http=Http(port=None)) as sidecar:
        wait_for_startup(sidecar)
        sidecar.wait_for(lambda: is_alive(sidecar))
        assert sidecar.status()["http_port"] is None
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True)
        for pid in sidecar.processes():
            assert f"pid={pid}," not in listening.stdout
        assert sidecar.stop() == 0


def test_what_an_earlier_container_left_says_nothing(tmp_path: Path) -> None:
    with Sidecar(tmp_path, [], http=Http(port=None)) as sidecar:
        wait_for_startup(sidecar)
        sidecar.kill()
        sidecar.termination_message.unlink()
        sidecar.termination_message.write_text("")  # as a kubelet does for the next container
        with subprocess.Popen(command_of(sidecar, "startupProbe")) as probe:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    probe.wait(0.5)
                sidecar.start()
                assert probe.wait(60) == 0
            finally:
                probe.kill()


def test_a_supervisor_that_hangs_is_not_alive(tmp_path: Path) -> None:
    with Sidecar(tmp_path, [], http=Http(port=None)) as sidecar:
        sidecar.wait_for(lambda: is_alive(sidecar))
        supervisor = min(sidecar.processes())
        os.kill(supervisor, signal.SIGSTOP)
        try:
            sidecar.wait_for(lambda: not is_alive(sidecar))
        finally:
            os.kill(supervisor, signal.SIGCONT)
        sidecar.wait_for(lambda: is_alive(sidecar))


def test_with_a_port_the_files_are_there_too(tmp_path: Path) -> None:
    """A mesh that comes later makes commands of the probes."""
    with Sidecar(tmp_path, []) as sidecar:
        wait_for_startup(sidecar)
        sidecar.wait_for(lambda: is_alive(sidecar))
