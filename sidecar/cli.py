"""The command line of `sidecar`: options in, calls out. It decides nothing.

Each command is a function, which imports what it needs when it runs, so that `sidecar resolve`
does not load the stores' SDKs. Commands raise errors of :mod:`sidecar.errors`; only :func:`main`
prints them and chooses the exit status.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar import __version__
from sidecar.errors import (
    EXIT_OK,
    CatalogueInvalid,
    ConfigError,
    ManifestInvalid,
    SelectionInvalid,
    SidecarError,
    SpecChanged,
    SpecInvalid,
    UsageError,
)
from sidecar.spec import (
    HTTP_PORT,
    KUBELET_PODS,
    SECRETS_ROOT,
    SHARED_ROOT,
    STATE_ROOT,
    TERMINATION_MESSAGE,
    PersistenceSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.control.injection.sidecar_container import Injection

# As a shell reports a program that a signal ended: 128 + SIGINT, 128 + SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

STANDARD_INPUT = "-"
PORT = click.IntRange(0, 65535)
MAX_ID = 2**32 - 2  # 2**32 - 1 means "no change" to chown(2)

# Paths at which the admission server's Deployment mounts its files.
WEBHOOK_CATALOGUE = "/etc/sidecar/catalogue/catalogue.yaml"
WEBHOOK_KEPT_CATALOGUE = "/etc/sidecar/catalogue-kept/catalogue.yaml"
WEBHOOK_TLS = "/etc/sidecar/tls"
WEBHOOK_PORT = 9443


def parse_user(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """``UID:GID`` as two numbers; None if it is not given. Raises click.BadParameter."""
    if value is None:
        return None
    uid, colon, gid = value.partition(":")
    if not (colon and uid.isdecimal() and gid.isdecimal() and value.isascii()):
        raise click.BadParameter(f"`{value}` is not UID:GID, such as 1000:1000")
    if max(int(uid), int(gid)) > MAX_ID:
        raise click.BadParameter(f"`{value}` is larger than {MAX_ID}")
    return int(uid), int(gid)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar", message="%(prog)s %(version)s")
def cli() -> None:
    """Cloud buckets as directories for experiment pods."""


@cli.command()
@click.option("--catalogue", required=True, metavar="FILE", help="Helm values, or data/outputs.")
@click.option("--polyaxonfile", metavar="FILE", help="The run's; without it the defaults apply.")
@click.option("--run", default="", metavar="PATH", help="Such as user/project/experiments/1.")
@click.option(
    "--paths",
    type=click.Choice(["local", "urls"]),
    default="local",
    show_default=True,
    help="What the variables hold for buckets.",
)
@click.option(
    "--user",
    metavar="UID:GID",
    callback=parse_user,
    help="Whom the run's program runs as: the owner of what is in buckets. "
    "[default: not known: everybody may write]",
)
@click.option(
    "--options",
    metavar="JSON",
    help="""Of volumes, as in a pod's annotation: '{"NAME": {"OPTION": VALUE}}'.""",
)
@click.option("--shared-root", default=SHARED_ROOT, show_default=True, metavar="DIR")
@click.option("--secrets-root", default=SECRETS_ROOT, show_default=True, metavar="DIR")
@click.option("--state-root", default=STATE_ROOT, show_default=True, metavar="DIR")
def resolve(
    catalogue: str,
    polyaxonfile: str | None,
    run: str,
    paths: str,
    user: tuple[int, int] | None,
    options: str | None,
    shared_root: str,
    secrets_root: str,
    state_root: str,
) -> None:
    """Print the resolved spec of a run as JSON. FILE may be - for standard input."""
    from sidecar.control.catalogue.catalogue import parse_catalogue
    from sidecar.control.catalogue.options import origin_notes
    from sidecar.control.catalogue.resolve import resolve as resolve_spec
    from sidecar.control.catalogue.run_options import NO_OPTIONS, parse_run_options
    from sidecar.control.catalogue.selection import Selection, parse_polyaxonfile
    from sidecar.spec import ANYBODY, Access, Roots

    if catalogue == polyaxonfile == STANDARD_INPUT:
        raise UsageError("--catalogue and --polyaxonfile cannot both read standard input")
    declared = parse_catalogue(*read_text(catalogue, CatalogueInvalid))
    selection = (
        parse_polyaxonfile(*read_text(polyaxonfile, SelectionInvalid))
        if polyaxonfile is not None
        else Selection()
    )
    spec = resolve_spec(
        declared,
        selection,
        run=run,
        paths="urls" if paths == "urls" else "local",
        roots=Roots(shared=shared_root, secrets=secrets_root, state=state_root),
        options=(parse_run_options(options, "--options", UsageError) if options else NO_OPTIONS),
    )
    for note in origin_notes(spec):
        click.echo(f"note: {note}", err=True)
    access = Access(uid=user[0], gid=user[1]) if user is not None else ANYBODY
    click.echo(replace(spec, access=access).to_json())


_IMAGE = click.option("--image", metavar="IMAGE", help="Of the sidecar. [default: this version's]")
_NATIVE = click.option(
    "--native/--no-native",
    default=True,
    show_default=True,
    help="Native sidecars (Kubernetes 1.29); without, an ordinary first container.",
)


_ALLOW_SHARED_PIDS = click.option(
    "--allow-shared-pids",
    is_flag=True,
    help="Also pods with shareProcessNamespace or hostPID: they reach the sidecar's processes.",
)


def _network(command: Callable[..., None]) -> Callable[..., None]:
    """Options for how the cluster's sidecars reach the stores."""
    for option in (
        click.option(
            "--ca-bundle",
            metavar="KIND/NAME/KEY",
            help="Authorities besides the public ones: configMap/... or secret/..., in the pod's "
            "namespace.",
        ),
        click.option(
            "--proxy-secret",
            metavar="SECRET",
            help="In the pod's namespace: HTTPS_PROXY, HTTP_PROXY, NO_PROXY, logins included.",
        ),
        click.option("--no-proxy", metavar="LIST", help="What is reached without the proxy."),
        click.option("--proxy", metavar="URL", help="http://HOST:PORT, without a login."),
    ):
        command = option(command)
    return command


@cli.command()
@click.option("--catalogue", required=True, metavar="FILE", help="Helm values, or data/outputs.")
@click.option("-f", "--filename", default=STANDARD_INPUT, metavar="MANIFEST", help="[default: -]")
@_IMAGE
@_NATIVE
@_ALLOW_SHARED_PIDS
@_network
def inject(
    catalogue: str,
    filename: str,
    image: str | None,
    native: bool,
    allow_shared_pids: bool,
    **network: str | None,
) -> None:
    """Print a manifest with the sidecar added to each pod in it. FILE may be -."""
    from sidecar.control.catalogue.catalogue import parse_catalogue
    from sidecar.control.injection.manifests import inject_manifests

    if catalogue == filename == STANDARD_INPUT:
        raise UsageError("--catalogue and --filename cannot both read standard input")
    declared = parse_catalogue(*read_text(catalogue, CatalogueInvalid))
    text, where = read_text(filename, ManifestInvalid)
    injection = _injection(image, native, allow_shared_pids, network)
    injected = inject_manifests(
        text, where, declared, injection, say=lambda remark: click.echo(f"note: {remark}", err=True)
    )
    click.echo(injected, nl=False)


def _injection(
    image: str | None, native: bool, allow_shared_pids: bool, network: dict[str, str | None]
) -> Injection:
    """Raises UsageError."""
    from sidecar.control.injection.network import Network
    from sidecar.control.injection.sidecar_container import DEFAULT_IMAGE, Injection
    from sidecar.spec import CaBundle
    from sidecar.spec_rules import proxy_problem

    proxy, secret = network["proxy"], network["proxy_secret"]
    if proxy is not None and (problem := proxy_problem(proxy)):
        raise UsageError(f"--proxy {problem}, or name a --proxy-secret")
    if proxy is not None and secret is not None:
        raise UsageError("--proxy and --proxy-secret exclude each other")
    text = network["ca_bundle"]
    bundle = None if text is None else CaBundle.parse(text)
    if text is not None and bundle is None:
        raise UsageError("--ca-bundle must be configMap/NAME/KEY or secret/NAME/KEY")
    chosen = Network(proxy, network["no_proxy"], bundle, secret)
    return Injection(image or DEFAULT_IMAGE, native, allow_shared_pids, chosen)


@cli.group(invoke_without_command=True)
@click.option("--catalogue", default=WEBHOOK_CATALOGUE, show_default=True, metavar="FILE")
@click.option(
    "--kept-catalogue",
    default=WEBHOOK_KEPT_CATALOGUE,
    show_default=True,
    metavar="FILE",
    help="The last valid one, for a start while the other cannot be read.",
)
@click.option("--keep-in", metavar="CONFIGMAP", help="Where it is kept. [default: it is not kept]")
@click.option("--namespace", default="mount-sidecar", show_default=True, help="Of that ConfigMap.")
@click.option(
    "--tls", default=WEBHOOK_TLS, show_default=True, metavar="DIR", help="tls.crt, tls.key."
)
@click.option("--host", default="0.0.0.0", show_default=True)  # noqa: S104 - the API server is outside
@click.option("--port", default=WEBHOOK_PORT, show_default=True, type=PORT, help="TLS: /mutate.")
@click.option(
    "--http-port", default=HTTP_PORT, show_default=True, type=PORT, help="/metrics, /livez."
)
@_IMAGE
@_NATIVE
@_ALLOW_SHARED_PIDS
@_network
@click.pass_context
def webhook(
    context: click.Context,
    /,
    *,
    catalogue: str,
    kept_catalogue: str,
    keep_in: str | None,
    namespace: str,
    tls: str,
    host: str,
    port: int,
    http_port: int,
    image: str | None,
    native: bool,
    allow_shared_pids: bool,
    **network: str | None,
) -> None:
    """Serve admission requests until told to stop. The catalogue and the TLS pair are followed."""
    if context.invoked_subcommand is not None:
        return
    from sidecar.control.webhook.kept_catalogue import KeptCatalogue
    from sidecar.control.webhook.server import Listen, serve

    injection = _injection(image, native, allow_shared_pids, network)
    kept = KeptCatalogue(Path(kept_catalogue), namespace, keep_in)
    serve(Path(catalogue), kept, Path(tls), injection, Listen(host, port, http_port))


@webhook.command()
@click.option("--namespace", default="mount-sidecar", show_default=True)
@click.option("--service", default="mount-sidecar-webhook", show_default=True)
@click.option("--secret", default="mount-sidecar-webhook-tls", show_default=True)
@click.option("--configuration", default="mount-sidecar", show_default=True)
@click.option("--days", default=365, show_default=True, type=click.IntRange(min=1))
@click.option("--renew-before-days", default=60, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--every-hours",
    type=click.IntRange(min=1),
    help="Look again that often, until told to stop. [default: look once]",
)
def certificate(
    namespace: str,
    service: str,
    secret: str,
    configuration: str,
    days: int,
    renew_before_days: int,
    every_hours: int | None,
) -> None:
    """Make a certificate, store it, and tell the API server: where there is no cert-manager."""
    import datetime as dt

    from sidecar import logs
    from sidecar.control.webhook.certificate_job import (
        CertificateJob,
        install_certificate,
        keep_certificate,
    )
    from sidecar.kubernetes_api import connect

    logs.set_up("certificate")
    if renew_before_days >= days:
        raise UsageError("--renew-before-days must be less than --days")
    job = CertificateJob(
        namespace,
        service,
        secret,
        configuration,
        lifetime=dt.timedelta(days=days),
        renew_before=dt.timedelta(days=renew_before_days),
    )
    if every_hours is not None:
        keep_certificate(connect(), job, every_hours * 3600.0)
        return
    changed = install_certificate(connect(), job)
    click.echo("installed" if changed else "nothing to do")


@cli.command()
@click.option(
    "--timeout", "timeout_s", default=60.0, show_default=True, metavar="S", help="Seconds."
)
@click.option("--port", default=HTTP_PORT, show_default=True, type=PORT, help="Of the sidecar.")
def wait(timeout_s: float, port: int) -> None:
    """Return when the sidecar in this container is ready: for compose, or a postStart."""
    from sidecar.mounter.reporting.wait import wait_until_ready

    wait_until_ready(port, timeout_s)


@cli.command()
def demo() -> None:
    """Show the main job on this machine, with an embedded object store."""
    from sidecar.demo import run_demo

    click.get_current_context().exit(run_demo())


@cli.command()
@click.option("--spec", "spec_file", required=True, metavar="FILE", help="From `sidecar resolve`.")
@click.option("--spec-sha256", metavar="HEX", help="Refuse a file with another digest.")
def mount(spec_file: str, spec_sha256: str | None) -> None:
    """Mount every bucket of a spec and serve until told to stop: the container's job."""
    from sidecar import stop_signals
    from sidecar.mounter.supervisor.main import command
    from sidecar.mounter.system.status import write_termination_message
    from sidecar.spec_rules import own_spec

    termination_message = TERMINATION_MESSAGE  # until the spec, if it can be read, names another
    try:
        text, where = read_text(spec_file, SpecInvalid, sha256=spec_sha256)
        spec = own_spec(text) if spec_sha256 is not None else None
        if spec is None:
            from sidecar.spec_document import load_spec  # a fifth of a second, for pydantic

            spec = load_spec(text, where)
        termination_message = spec.roots.termination_message
        validated = _write_validated(spec)
    except SidecarError as error:
        write_termination_message(termination_message, error.line() + "\n")
        raise
    # Replace this process, so that the libraries that parsing needed leave its memory.
    arguments = command(str(validated))
    sys.stdout.flush()
    stop_signals.block()
    try:
        os.execv(arguments[0], arguments)
    finally:  # it failed
        stop_signals.unblock()


@cli.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=KUBELET_PODS,
    show_default=True,
    metavar="DIR",
    help="The kubelet's directory of pods.",
)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=1),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks while no mount changes.",
)
@click.option("--once", is_flag=True, help="Look once, and end.")
@click.option(
    "--node-cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the cache that the node's pods share. [default: there is none]",
)
@click.option(
    "--node-cache-size", default="100Gi", show_default=True, metavar="SIZE", help="Its budget."
)
def janitor(
    root: Path, interval_s: float, *, once: bool, node_cache: Path | None, node_cache_size: str
) -> None:
    """Detach what killed sidecars left mounted on this node, until told to stop."""
    from sidecar import logs
    from sidecar.control.catalogue.quantity import parse_quantity
    from sidecar.mounter.janitor import run

    try:
        size_bytes = parse_quantity(node_cache_size).rounded_up
    except ValueError:
        raise UsageError("--node-cache-size must be a quantity such as `100Gi`") from None
    logs.set_up("janitor")
    status = run(root, interval_s, once=once, node_cache=node_cache, node_cache_bytes=size_bytes)
    click.get_current_context().exit(status)


def _write_validated(spec: PersistenceSpec) -> Path:
    """Write the spec for the supervisor and its workers; the file. Raises StateUnusable."""
    from sidecar.mounter.system import directories
    from sidecar.mounter.system.atomic_file import replace_text, temporary_name

    validated = Path(spec.roots.state) / "spec.json"
    try:
        state = directories.open_directory(validated.parent, make=True)
        try:
            for name in (validated.name, temporary_name(validated.name)):
                directories.remove(state, name)
            replace_text(validated.name, spec.to_json(), state)
        finally:
            os.close(state)
    except OSError as failure:
        raise directories.unusable(
            f"cannot write `{validated}`",
            failure,
            "the state directory (`roots.state`) must be writable",
        ) from None
    return validated


def read_text(path: str, error: type[ConfigError], *, sha256: str | None = None) -> tuple[str, str]:
    """The text of a file, or of standard input for ``-``, and the name of it for messages.

    Args:
        sha256: what the digest of the bytes must be, in hexadecimal; None: anything.

    Raises:
        UsageError: the file cannot be read.
        SpecChanged: the digest is another one.
        ConfigError: it is not UTF-8; of the class ``error``.
    """
    where = "standard input" if path == STANDARD_INPUT else path
    try:
        content = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise SpecChanged(
                f"{where}: is not the spec that this container was made for (`--spec-sha256`)",
                "make the pod anew",
            )
        return content.decode("utf-8-sig"), where
    except OSError as failure:
        raise UsageError(f"cannot read `{where}`: {failure.strerror}") from None
    except ValueError as failure:
        if not isinstance(failure, UnicodeDecodeError):  # NUL in the path
            raise UsageError(f"cannot read `{path!r}`: not a path") from None
        raise error(f"{where}: not UTF-8 (byte {failure.start})") from None


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; the exit status.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Not cli.main(), which prints usage errors in a form of its own, and exits with 1 for a
        # signal.
        with cli.make_context("sidecar", list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as wrong:
        return _report(_usage_error(wrong))
    except SidecarError as error:
        return _report(error)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output again at exit, which would fail and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return EXIT_OK


def _usage_error(wrong: click.ClickException) -> UsageError:
    message = wrong.format_message().rstrip(".")
    context = wrong.ctx if isinstance(wrong, click.UsageError) else None
    command = context.command_path if context else "sidecar"
    return UsageError(message[:1].lower() + message[1:], f"see `{command} --help`")


def _report(error: SidecarError) -> int:
    click.echo(error.line(), err=True)
    return error.exit_status
