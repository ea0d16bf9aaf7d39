"""Commands of the control half: resolve, inject, webhook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar.cli.group import PORT, STANDARD_INPUT, cli, read_text, tell
from sidecar.contract.spec import HTTP_PORT, SECRETS_ROOT, SHARED_ROOT, STATE_ROOT
from sidecar.errors import CatalogueInvalid, ManifestInvalid, SelectionInvalid, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.control.injection.sidecar_container import Injection

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
    from sidecar.contract.spec import ANYBODY, Access, Roots
    from sidecar.control.catalogue.catalogue import parse_catalogue
    from sidecar.control.catalogue.option_rules import origin_notes
    from sidecar.control.catalogue.resolve import resolve as resolve_spec
    from sidecar.control.catalogue.run_options import NO_OPTIONS, parse_run_options
    from sidecar.control.catalogue.selection import Selection, parse_polyaxonfile

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
        tell(f"note: {note}")
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
    """Add the options for how the cluster's sidecars reach the stores."""
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
        text, where, declared, injection, say=lambda remark: tell(f"note: {remark}")
    )
    click.echo(injected, nl=False)


def _injection(
    image: str | None, native: bool, allow_shared_pids: bool, network: dict[str, str | None]
) -> Injection:
    """Raises UsageError."""
    from sidecar.contract.spec import CaBundle
    from sidecar.contract.spec_rules import proxy_problem
    from sidecar.control.injection.sidecar_container import DEFAULT_IMAGE, Injection
    from sidecar.control.injection.store_network import Network

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
@click.option("--host", default="::", show_default=True, help="`::` is IPv4, too.")
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
    """Make a certificate, store it, and tell the API server, for clusters without cert-manager."""
    import datetime as dt

    from sidecar import logs
    from sidecar.cluster.api import connect
    from sidecar.control.webhook.certificate_job import (
        CertificateJob,
        install_certificate,
        keep_certificate,
    )

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
