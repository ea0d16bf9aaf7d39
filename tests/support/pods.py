"""Runs a pod manifest with podman, as the kubelet would.

This adds what podman lacks, as in pkg/kubelet/kuberuntime: native sidecars (init containers
with ``restartPolicy: Always``) and their startup probes, hooks, mount propagation, secrets and
the downward API as files, and the order of the end: SIGTERM to the sidecar once the other
containers have ended, SIGKILL after the grace period, then the emptyDirs are deleted. A pod has
its own network, in which the chosen ports of the tests' servers are reachable.

The images are built by ``scripts/build-image.sh``; no image registry is used.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sidecar import __version__
from sidecar.mounter.system import mounts
from tests.support.network import Network
from tests.support.servers import REPOSITORY
from tests.support.waiting import wait_until

Json = dict[str, Any]

SIDECAR_IMAGE = f"localhost/mount-sidecar:{__version__}"
EXPERIMENT_IMAGE = f"localhost/experiment:{__version__}"

_PODMAN = REPOSITORY / "scripts" / "podman.sh"
_BUILD = REPOSITORY / "scripts" / "build-image.sh"
_CONMON_PLACE = REPOSITORY / ".tools" / "podman"
_TIMEOUT_S = 60.0
_DEFAULT_GRACE_S = 30
_LEAST_GRACE_S = 2  # minimumGracePeriodInSeconds
_POLL_S = 0.05
_STOPPED = ("exited", "stopped")
_FUSE_DEVICE = "/dev/fuse"
_PROPAGATION = {"Bidirectional": "rshared", "HostToContainer": "rslave"}
# include/uapi/linux/mount.h
_MS_BIND, _MS_REC, _MS_SHARED, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 20, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def build_images() -> str:
    """Build missing images; all images with their sizes, one a line."""
    result = subprocess.run([_BUILD], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def podman(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman on this clone's own storage."""
    # After an out-of-memory kill, conmon writes a file `oom` into its working directory.
    result = subprocess.run(
        [_PODMAN, *arguments], capture_output=True, text=True, check=False, cwd=_CONMON_PLACE
    )
    assert result.returncode == 0 or not check, f"podman {arguments}: {result.stderr}"
    return result


class Container:
    """One running or ended container."""

    def __init__(self, name: str) -> None:
        self.name = name

    def state(self) -> Json:
        """Its State from podman: Status, ExitCode, OOMKilled, ..."""
        found: Json = json.loads(podman("inspect", self.name).stdout)[0]["State"]
        return found

    @property
    def running(self) -> bool:
        """Whether its first process runs."""
        return self.state()["Status"] not in _STOPPED

    def wait(self, timeout_s: float = _TIMEOUT_S) -> int:
        """Wait for its end; the exit status."""
        wait_until(
            lambda: not self.running,
            lambda: f"the end of {self.name}:\n{self.logs()}",
            timeout_s,
            poll_s=_POLL_S,
        )
        return int(self.state()["ExitCode"])

    def logs(self) -> str:
        """Its standard output and standard error."""
        result = podman("logs", self.name)
        return result.stdout + result.stderr

    def execute(self, *command: str, check: bool = True) -> str:
        """Run a program in it, as ``kubectl exec`` does; its output."""
        return podman("exec", self.name, *command, check=check).stdout

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        podman("kill", "--signal", name, self.name)

    def remove(self) -> None:
        """Kill and remove it."""
        podman("rm", "--force", "--time", "0", "--ignore", self.name)


class Pod:
    """One pod: a manifest, and the objects that it refers to.

    Args:
        directory: the pod's directory, as below /var/lib/kubelet/pods.
        manifest: its ``metadata`` and ``spec``.
        secrets: secret name to (key to content).
        config_maps: the same for config maps.
        claims: claim name to a directory.
        ports: of this machine's loopback, reachable in the pod at the same address.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Json,
        *,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        config_maps: Mapping[str, Mapping[str, str]] | None = None,
        claims: Mapping[str, Path] | None = None,
        ports: Iterable[int] = (),
    ) -> None:
        self.directory = directory
        self.metadata: Json = manifest["metadata"]
        self.spec: Json = manifest["spec"]
        self.uid = uuid.uuid4().hex
        self._files = {"secret": dict(secrets or {}), "configMap": dict(config_maps or {})}
        self._claims = dict(claims or {})
        self._volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        self._containers: dict[str, Container] = {}
        self._starts = 0
        self._is_shared = False
        self._ports = list(ports)
        self.network = Network()

    # --- life ---------------------------------------------------------------------------

    def start(self) -> Self:
        """Start every init container in order, then the others.

        If a native sidecar ends before its startup probe succeeds, it returns and does not
        start the others. A postStart hook that fails ends its own container only.
        """
        for port in self._ports:
            self.network.bring_in(port)
        self._share()
        for container in self.spec.get("initContainers", []):
            started = self.start_container(container)
            if container.get("restartPolicy") == "Always":
                if not self._started(container, started):
                    return self
            else:
                assert started.wait() == 0, started.logs()
        for container in self.spec["containers"]:
            self.start_container(container)
        return self

    def start_container(self, container: Json) -> Container:
        """Start one container, or restart it after it ended, as the kubelet does."""
        self._starts += 1
        name = f"test-{self.uid[:12]}-{container['name']}-{self._starts}"
        message = self._message_file(container["name"])
        message.parent.mkdir(parents=True, exist_ok=True)
        message.write_bytes(b"")
        podman("run", "--detach", "--name", name, *self._options(container, message))
        started = self._containers[container["name"]] = Container(name)
        hook = container.get("lifecycle", {}).get("postStart")
        if hook and podman("exec", name, *hook["exec"]["command"], check=False).returncode != 0:
            podman("stop", "--time", str(self._grace_s), name)
        return started

    def __getitem__(self, name: str) -> Container:
        if name not in self:
            logs = [container.logs() for container in self._containers.values()]
            raise AssertionError(f"{name} was not started: {logs}")
        return self._containers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._containers

    def termination_message(self, name: str) -> str:
        """The container's termination message."""
        return self._message_file(name).read_text()

    def stop_sidecars(self, grace_s: float | None = None) -> dict[str, int]:
        """Stop the sidecars, as the kubelet does after the main containers; their exit status.

        Args:
            grace_s: the rest of the pod's grace period; default: all of it.
        """
        end_s = time.monotonic() + (self._grace_s if grace_s is None else grace_s)
        return {
            container["name"]: self._stop(container, end_s)
            for container in reversed(self.spec.get("initContainers", []))
            if container.get("restartPolicy") == "Always" and container["name"] in self
        }

    def delete(self) -> dict[str, int]:
        """Stop the pod, as `kubectl delete` does; the exit status of each container.

        The main containers are stopped at once, the native sidecars after them, all within
        one grace period.
        """
        end_s = time.monotonic() + self._grace_s
        running = [container for container in self.spec["containers"] if container["name"] in self]
        with ThreadPoolExecutor(len(running)) as pool:
            statuses = pool.map(lambda container: self._stop(container, end_s), running)
            ended = dict(zip((container["name"] for container in running), statuses, strict=True))
        return {**ended, **self.stop_sidecars(end_s - time.monotonic())}

    @property
    def _grace_s(self) -> int:
        return int(self.spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S))

    def _stop(self, container: Json, end_s: float) -> int:
        """preStop, SIGTERM, and SIGKILL at ``end_s``; the exit status."""
        running = self[container["name"]]
        hook = container.get("lifecycle", {}).get("preStop")
        if hook and running.running:
            running.execute(*hook["exec"]["command"], check=False)
        left_s = max(_LEAST_GRACE_S, int(end_s - time.monotonic()))
        podman("stop", "--time", str(left_s), running.name)
        return running.wait()

    def mounted(self) -> list[str]:
        """Mount points in the pod's volumes, on the host."""
        below = f"{self.directory / 'volumes'}/"
        return [mount.path for mount in mounts.mounted() if mount.path.startswith(below)]

    def delete_volumes(self) -> None:
        """Delete the emptyDirs, as the kubelet does at a pod's end. Raises OSError."""
        self._unshare()
        for name, volume in self._volumes.items():
            if "emptyDir" in volume and self._empty_directory(name).exists():
                shutil.rmtree(self._empty_directory(name))

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.clean_up()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clean_up()

    def clean_up(self) -> None:
        """End every container and detach every mount, whatever the test left."""
        prefix = f"test-{self.uid[:12]}-"
        names = podman("ps", "--all", "--filter", f"name={prefix}", "--format", "{{.Names}}")
        for name in names.stdout.split():
            Container(name).remove()
        for path in reversed(self.mounted()):
            mounts.unmount(path)
        self._unshare()
        self.network.close()

    # --- volumes ------------------------------------------------------------------------

    def host_path(self, name: str) -> Path:
        """A volume's path on the host; created if the kubelet would create it."""
        volume = self._volumes[name]
        if "hostPath" in volume:
            path = Path(volume["hostPath"]["path"])
            if volume["hostPath"].get("type") == "Directory":
                assert path.is_dir(), f"hostPath type check failed: {path} is not a directory"
            return path
        if "persistentVolumeClaim" in volume:
            return self._claims[volume["persistentVolumeClaim"]["claimName"]]
        path = self._empty_directory(name)
        if not path.exists():
            path.mkdir(parents=True)
            path.chmod(0o777)  # The kubelet's mode of an emptyDir.
            mode = volume.get("secret", {}).get("defaultMode", 0o644)
            for file, content in self._projected(volume).items():
                (path / file).write_text(content)
                (path / file).chmod(mode)
        return path

    def _empty_directory(self, name: str) -> Path:
        return self.directory / "volumes" / name

    def _projected(self, volume: Json) -> dict[str, str]:
        """The files of a secret, a config map or the downward API."""
        for kind, key in (("secret", "secretName"), ("configMap", "name")):
            if kind in volume:
                values = self._files[kind][volume[kind][key]]
                items = volume[kind].get("items") or [{"key": k, "path": k} for k in values]
                return {item["path"]: values[item["key"]] for item in items}
        if "downwardAPI" in volume:
            items = volume["downwardAPI"]["items"]
            return {item["path"]: self._field(item["fieldRef"]["fieldPath"]) for item in items}
        return {}

    def _field(self, path: str) -> str:
        known = {
            "metadata.name": self.metadata["name"],
            "metadata.namespace": self.metadata.get("namespace", "default"),
            "metadata.uid": self.uid,
            "spec.nodeName": "node",
        }
        for kind in ("annotations", "labels"):
            for key, value in self.metadata.get(kind, {}).items():
                known[f"metadata.{kind}['{key}']"] = value
        return str(known[path])

    def _share(self) -> None:
        """Make the volumes' directory a shared mount, as the kubelet's directory is."""
        make_shared(self.directory / "volumes")
        self._is_shared = True

    def _unshare(self) -> None:
        if self._is_shared:
            self._is_shared = False
            mounts.unmount(str(self.directory / "volumes"))

    def _message_file(self, container: str) -> Path:
        return self.directory / "termination" / container

    # --- containers -----------------------------------------------------------------------

    def _options(self, container: Json, message: Path) -> list[str]:
        """The arguments of ``podman run``."""
        pod_context: Json = self.spec.get("securityContext", {})
        context: Json = {**pod_context, **container.get("securityContext", {})}
        options = ["--network", f"ns:{self.network.path}"]
        options += ["--pull", "never", "--log-driver", "k8s-file"]
        if context.get("privileged"):
            options.append("--privileged")
        else:
            options += ["--security-opt", "no-new-privileges"]
            options += [f"--cap-drop={c}" for c in context.get("capabilities", {}).get("drop", [])]
        if "runAsUser" in context:
            options += ["--user", f"{context['runAsUser']}:{context.get('runAsGroup', 0)}"]
        if "fsGroup" in context:
            options += ["--group-add", str(context["fsGroup"])]
        if context.get("readOnlyRootFilesystem"):
            options += ["--read-only", "--read-only-tmpfs=false"]
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if limit is not None:
            options += ["--memory", limit.removesuffix("i").lower()]
        for variable in container.get("env", []):
            value = variable.get("value")
            if value is None:
                value = self._field(variable["valueFrom"]["fieldRef"]["fieldPath"])
            options += ["--env", f"{variable['name']}={value}"]
        for mount in container.get("volumeMounts", []):
            options += self._mount_options(mount)
        target = container.get("terminationMessagePath", "/dev/termination-log")
        options += ["--volume", f"{message}:{target}"]
        if "command" in container:
            options += ["--entrypoint", json.dumps(container["command"])]
        return [*options, container["image"], *container.get("args", [])]

    def _mount_options(self, mount: Json) -> list[str]:
        if mount["mountPath"] == _FUSE_DEVICE:
            return ["--device", _FUSE_DEVICE]
        source = self.host_path(mount["name"]) / mount.get("subPath", "")
        source.mkdir(parents=True, exist_ok=True)  # The kubelet creates sub-paths (SafeMakeDir).
        flags = [_PROPAGATION.get(mount.get("mountPropagation", ""), "rprivate")]
        if mount.get("readOnly"):
            flags.append("ro")
        return ["--volume", f"{source}:{mount['mountPath']}:{','.join(flags)}"]

    def _started(self, container: Json, running: Container) -> bool:
        """Wait for the startup probe; False if the container ended first."""
        probe = container["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            command = probe["exec"]["command"]
            if podman("exec", running.name, *command, check=False).returncode == 0:
                return True
            if not running.running:
                return False
        raise AssertionError(f"not ready:\n{running.logs()}")


def make_shared(place: Path) -> None:
    """Make a directory that is a shared mount, so that mounts below it propagate."""
    place.mkdir(parents=True, exist_ok=True)
    _mount(place, _MS_BIND)
    try:
        _mount(place, _MS_REC | _MS_SHARED)
    except OSError:
        mounts.unmount(str(place))
        raise


def _mount(path: Path, flags: int) -> None:
    """mount(2) of a path onto itself, or of a propagation flag."""
    name = os.fsencode(path)
    if _libc.mount(name, name, None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {path}")
