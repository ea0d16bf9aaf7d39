"""`sidecar try`: one bucket at one directory, in the foreground, with the login of this machine.

Starts `sidecar mount` as a pod would, reports its progress in a few lines, and ends it at Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import (
    Access,
    Http,
    PersistenceSpec,
    Roots,
    StoreName,
    StoreSource,
    Volume,
)
from sidecar.contract.spec_rules import check_spec
from sidecar.control.catalogue.bucket_url import SCHEMES, parse_bucket_url
from sidecar.control.catalogue.option_rules import Layer, Values, combined
from sidecar.errors import EXIT_NOT_SAVED, EXIT_OK, BucketUrlInvalid, UsageError
from sidecar.mounter.system import directories
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.system.status import STATUS_FILE, TERMINATION_MESSAGE_BYTES, read_status
from sidecar.stop_signals import STOP_SIGNALS
from sidecar.units import MIB

NAME: Final = "try"
_STATE, _SECRETS, _MESSAGE, _LOG = "state", "secrets", "message", "log"
_LOGIN_FOLDER: Final = "environment"
_LOGIN_FILE: Final = "key.json"
_POLL_S: Final = 0.1
_LASTING_S: Final = 1.0

_AZURE_VARIABLES: Final = {
    "AZURE_CONNECTION_STRING": ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_CONNECTION_STRING"),
    "AZURE_ACCOUNT_NAME": ("AZURE_STORAGE_ACCOUNT", "AZURE_ACCOUNT_NAME"),
    "AZURE_ACCOUNT_KEY": ("AZURE_STORAGE_KEY", "AZURE_ACCOUNT_KEY"),
}
"""A secret's keys, and the variables of Azure's own tools that hold them. Azure's SDK ignores these
variables; the SDKs of the other clouds read their tools' variables and files."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial.

    Attributes:
        url: the bucket, maybe with a prefix.
        directory: absolute, where it is mounted.
        anonymous: the bucket is public, and requests are not signed.
        values: the options, by name.
    """

    url: str
    directory: str
    read_only: bool
    anonymous: bool
    values: Values

    @property
    def store(self) -> StoreName:
        """The store, by the URL's scheme. Raises BucketUrlInvalid."""
        scheme = self.url.partition("://")[0]
        for store, schemes in SCHEMES.items():
            if scheme in schemes:
                return store
        known = ", ".join(f"{name}://" for schemes in SCHEMES.values() for name in schemes)
        given = self.url.partition("?")[0]
        raise BucketUrlInvalid(f"`{given}` is no bucket's URL", f"one of {known}")

    def spec(self, folder: Path, *, has_secret: bool) -> PersistenceSpec:
        """The spec, with every root below ``folder``.

        Raises:
            ConfigError: the URL cannot be a bucket's, or the directory is reserved.
        """
        url = parse_bucket_url(self.store, self.url, "URL")
        layers = [Layer("command line", self.values)]
        options, origins = combined(layers, Options)
        source = StoreSource(
            store=self.store,
            url=self.url,
            bucket=url.bucket,
            prefix=url.prefix,
            account=url.account,
            endpoint_suffix=url.endpoint_suffix,
            secret=_LOGIN_FOLDER if has_secret else None,
            secret_key=_LOGIN_FILE if has_secret else None,
            anonymous=self.anonymous,
        )
        volume = Volume(
            name=NAME,
            kind="data",
            path=self.directory,
            mountpoint=self.directory,
            read_only=self.read_only,
            source=source,
            options=options,
            origins=origins,
        )
        spec = PersistenceSpec(
            volumes=(volume,),
            roots=Roots(
                shared=str(folder / "shared"),
                secrets=str(folder / _SECRETS),
                state=str(folder / _STATE),
                node_cache=str(folder / "node-cache"),
                memory_cache=str(folder / "memory-cache"),
                termination_message=str(folder / _MESSAGE),
            ),
            http=Http(port=None),
            access=_access_of_caller(),
            times=combined(layers, Times)[0],
        )
        check_spec(spec)
        return spec

    def catalogue_entry(self) -> str:
        """The YAML that declares the same volume in a cluster. Raises BucketUrlInvalid."""
        entry: dict[str, Any] = {"store": self.store, "bucket": self.url}
        parse_bucket_url(self.store, self.url, "URL")
        if self.anonymous:
            entry["anonymous"] = True
        if self.read_only:
            entry["readOnly"] = True
        if self.values:
            entry["options"] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.values.items()
            }
        document = {"persistence": {"data" if self.read_only else "outputs": {"name": entry}}}
        text = yaml.safe_dump(document, sort_keys=False)
        remark = "# Without `secret` and `secretKey` the pod's own identity is used, if it has one."
        return text if self.anonymous else f"{remark}\n{text}"


def _access_of_caller() -> Access:
    """Files belong to the user who asked for the mount, also through sudo."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    return Access(
        uid=int(uid) if uid.isdecimal() else os.getuid(),
        gid=int(gid) if gid.isdecimal() else os.getgid(),
    )


def run(trial: Trial, say: Callable[[str], None]) -> int:
    """Mount until `sidecar mount` ends or is asked to; its exit status.

    What is not saved at the end stays in a folder of this machine, and the next run with the same
    URL and directory saves it.

    Args:
        say: takes a line for people.

    Raises:
        ConfigError: see :meth:`Trial.spec`.
        UsageError: the directory is not empty or in use, or nothing can be kept on this machine.
    """
    folder = _folder(trial)
    fields = _login(trial.store, os.environ) if not trial.anonymous else {}
    spec = trial.spec(folder, has_secret=bool(fields))
    _refuse_what_is_there(trial.directory)
    lock_name = f"{_digest(trial.directory)}.lock"
    try:
        parent = directories.open_directory(folder.parent, make=True, mode=0o700)
        own = directories.make_child(parent, folder.name, str(folder), mode=0o700)
        lock = directories.open_file(parent, lock_name, os.O_WRONLY | os.O_CREAT)
    except OSError as error:
        raise UsageError(
            f"cannot use `{folder}`: {error.strerror}", "set XDG_STATE_HOME to a folder of yours"
        ) from None
    with open(lock, "wb"):
        _take(lock, trial.directory)
        try:
            status = _run(trial, StateDirectory(folder, own), spec, fields, say)
            if status == EXIT_OK and trial.values.get("cache", "none") == "none":
                directories.remove(parent, folder.name)
            return status
        finally:
            with contextlib.suppress(FileNotFoundError):  # nothing is mounted there any more
                os.unlink(lock_name, dir_fd=parent)
            os.close(parent)


def _run(
    trial: Trial,
    folder: StateDirectory,
    spec: PersistenceSpec,
    fields: Mapping[str, str],
    say: Callable[[str], None],
) -> int:
    with folder.replacing(_MESSAGE):
        pass
    folder.below(_STATE).remove(STATUS_FILE)  # an earlier run's
    if fields:
        secret = folder.below(_SECRETS).below(_LOGIN_FOLDER)
        with secret.replacing(_LOGIN_FILE) as descriptor:
            os.write(descriptor, json.dumps(fields).encode())
    with folder.replacing(_LOG):
        pass
    with _noted_signals() as asked, open(folder.open_file(_LOG, os.O_WRONLY), "wb") as log:
        process = _start(spec, log.fileno())
        try:
            _follow(process, trial, Path(spec.roots.state), asked, say)
        finally:
            # It has ended, or must save what is not saved yet.
            process.terminate()
            status = process.wait()
    for line in (
        folder.read(_MESSAGE, TERMINATION_MESSAGE_BYTES).decode(errors="replace").split("\n")
    ):
        if line:
            say(line)
    if status == EXIT_OK:
        say(f"{trial.directory} is unmounted; everything is saved")
    elif status == EXIT_NOT_SAVED:
        say("run the same command again to save it")
    else:
        say(f"its log is {folder.path / _LOG}")
    return status


def _folder(trial: Trial) -> Path:
    """The folder for what is not saved, one for each trial. Its grandparent may be a link."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return (
        Path(os.path.realpath(base)) / "mount-sidecar" / _digest(f"{trial.url}\0{trial.directory}")
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_what_is_there(directory: str) -> None:
    """Refuse a directory with content, which would be hidden. A dead mount of ours is cleared."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTCONN):
            return
        raise UsageError(f"`{directory}`: {error.strerror}") from None
    if names:
        raise UsageError(f"`{directory}` is not empty", "name a directory that is, or a new one")


def _take(lock: int, directory: str) -> None:
    """Be the only one at the directory as long as the file is open."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"`{directory}` has a bucket already", "end the other `sidecar try`"
        ) from None


def _login(store: StoreName, environment: Mapping[str, str]) -> dict[str, str]:
    """The fields of a secret that the environment holds; empty: the SDK's default chain."""
    if store != "azure":
        return {}
    found = {
        field: value
        for field, names in _AZURE_VARIABLES.items()
        if (value := next((environment[n] for n in names if environment.get(n)), None))
    }
    return found if found.keys() & {"AZURE_CONNECTION_STRING", "AZURE_ACCOUNT_KEY"} else {}


def _start(spec: PersistenceSpec, log: int) -> subprocess.Popen[bytes]:
    # In a session of its own the sidecar gets no Ctrl-C; setpriv(1): it ends if this process dies.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "sidecar"]
    with open(os.memfd_create("spec"), "w+") as text:
        text.write(spec.to_json())
        text.seek(0)
        return subprocess.Popen(
            [*command, "mount", "--spec", "-"],
            stdin=text,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Note stop signals in the list instead of ending the process."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _frame: asked.append(received))
        for number in STOP_SIGNALS
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(
    process: subprocess.Popen[bytes],
    trial: Trial,
    state: Path,
    asked: list[int],
    say: Callable[[str], None],
) -> None:
    """Report what happens until the sidecar ends, or is asked to and has reported that."""
    how = "read-only" if trial.read_only else "writable"
    told: set[str] = set()
    failing_since_s: float | None = None

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            say(line)

    while process.poll() is None:
        document = _status(state)
        if document.get("ready"):
            tell(f"{trial.url} is at {trial.directory}, {how}. Ctrl-C ends it.")
        for volume in document.get("volumes", []):
            # An error that ends it is reported at the end.
            if (error := volume["error"]) is None:
                failing_since_s = None
            elif failing_since_s is None:
                failing_since_s = time.monotonic()
            elif time.monotonic() - failing_since_s > _LASTING_S:
                tell(f"{error['code']} {error['name']}: {error['message']}")
            if left := volume["left"]:
                tell(f"saving: {left['files']} file(s), {left['size_bytes'] / MIB:.1f} MiB left")
        if asked:
            process.terminate()
            asked.clear()
        time.sleep(_POLL_S)


def _status(state: Path) -> dict[str, Any]:
    """The sidecar's own status document; empty before it has begun."""
    try:
        return read_status(state)
    except (OSError, ValueError):
        return {}
