"""A pod manifest run by podman, the way a kubelet runs it.

What podman does not know is done here, as a kubelet does it (pkg/kubelet/kuberuntime): native
sidecars (init containers with ``restartPolicy: Always``) and their startup probes, hooks, mount
propagation, secrets and the downward API as files, and the order of the end: SIGTERM to the
sidecar once the other containers have ended, SIGKILL after the grace period, then the emptyDirs
are deleted. A pod has a network of its own, with the tests' servers that it asks for.

The images are built by ``scripts/build-image.sh``; no registry of images is asked.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sidecar import __version__
from sidecar.mounter.system import mounts
from tests.support.network import HOST, Network
from tests.support.servers import REPOSITORY

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
    """Build what is not built yet; the images with their sizes, one a line."""
    result = subprocess.run([_BUILD], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def podman(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman on this clone's own storage."""
    # conmon leaves a file `oom` where it was started, when the kernel killed for memory.
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
        """podman's State of it: Status, ExitCode, OOMKilled, ..."""
        found: Json = json.loads(podman("inspect", self.name).stdout)[0]["State"]
        return found

    @property
    def running(self) -> bool:
        """Whether its first process lives."""
        return self.state()["Status"] not in _STOPPED

    def wait(self, timeout_s: float = _TIMEOUT_S) -> int:
        """The exit status, once it ends by itself."""
        end_s = time.monotonic() + timeout_s
        while self.running:
            assert time.monotonic() < end_s, f"{self.name} is still running:\n{self.logs()}"
            time.sleep(_POLL_S)
        return int(self.state()["ExitCode"])

    def logs(self) -> str:
        """What it printed, standard error included."""
        result = podman("logs", self.name)
        return result.stdout + result.stderr

    def execute(self, *command: str, check: bool = True) -> str:
        """Run a program in it, as ``kubectl exec`` does; its output."""
        return podman("exec", self.name, *command, check=check).stdout

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        podman("kill", "--signal", name, self.name)

    def remove(self) -> None:
        """End it and forget it."""
        podman("rm", "--force", "--time", "0", "--ignore", self.name)


class Pod:
    """One pod: a manifest as the API would take it, and the objects that it refers to.

    Args:
        directory: what a kubelet has below /var/lib/kubelet/pods.
        manifest: its ``metadata`` and ``spec``.
        secrets: secret name to (key to content).
        config_maps: the same for config maps.
        claims: claim name to the directory that it is.
        ports: of this machine's loopback, which the pod reaches at the same address.
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

        Returns also when a native sidecar ended before its startup probe succeeded: the
        others are not started then. A postStart hook that fails ends its own container only.
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
        """Start one container, also once more after it ended, as a kubelet does."""
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
        """What a container left for the kubelet."""
        return self._message_file(name).read_text()

    def stop_sidecars(self, grace_s: float | None = None) -> dict[str, int]:
        """What happens when the main containers have ended; the exit status of each sidecar.

        Args:
            grace_s: what is left of the pod's, which it is by default.
        """
        end_s = time.monotonic() + (self._grace_s if grace_s is None else grace_s)
        return {
            container["name"]: self._stop(container, end_s)
            for container in reversed(self.spec.get("initContainers", []))
            if container.get("restartPolicy") == "Always" and container["name"] in self
        }

    def delete(self) -> dict[str, int]:
        """What `kubectl delete` does; the exit status of each container.

        The containers are told to stop at once, the native sidecars when all of them have
        ended, and one grace period is for all of it.
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
        """What is mounted in the pod's volumes, on the host."""
        below = f"{self.directory / 'volumes'}/"
        return [mount.path for mount in mounts.mounted() if mount.path.startswith(below)]

    def delete_volumes(self) -> None:
        """Delete the emptyDirs, as the kubelet does at a pod's end. OSError where it cannot."""
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
        """Where a volume of the pod is on the host, made where a kubelet makes it."""
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
            path.chmod(0o777)  # as a kubelet makes an emptyDir
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
        """Make the volumes' place a shared mount, which the kubelet's folder is on a node."""
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
        source.mkdir(parents=True, exist_ok=True)  # a sub-path that is not there (SafeMakeDir)
        flags = [_PROPAGATION.get(mount.get("mountPropagation", ""), "rprivate")]
        if mount.get("readOnly"):
            flags.append("ro")
        return ["--volume", f"{source}:{mount['mountPath']}:{','.join(flags)}"]

    def _started(self, container: Json, running: Container) -> bool:
        """Wait for the startup probe; False when the container ended first."""
        probe = container["startupProbe"]
        port = self.network.bring_out(probe["httpGet"]["port"])
        url = f"http://{HOST}:{port}{probe['httpGet']['path']}"
        end_s = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
        while not _succeeds(url):
            if not running.running:
                return False
            assert time.monotonic() < end_s, f"not ready:\n{running.logs()}"
            time.sleep(_POLL_S)  # and not the period: nothing is shown by waiting longer
        return True


def make_shared(place: Path) -> None:
    """Make a directory that is a shared mount of its own, so that mounts below it are passed on."""
    place.mkdir(parents=True, exist_ok=True)
    _mount(place, _MS_BIND)
    try:
        _mount(place, _MS_REC | _MS_SHARED)
    except OSError:
        mounts.unmount(str(place))
        raise


def _succeeds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # an HTTP error too
        return False


def _mount(path: Path, flags: int) -> None:
    """mount(2) of a path onto itself, or a change of its propagation."""
    name = os.fsencode(path)
    if _libc.mount(name, name, None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {path}")
