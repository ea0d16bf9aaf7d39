"""Commands of the mounter half, and those that start it on one machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar.cli.group import PORT, cli, read_text, tell
from sidecar.contract.spec import HTTP_PORT, KUBELET_PODS, TERMINATION_MESSAGE
from sidecar.errors import SidecarError, SpecInvalid, UsageError

if TYPE_CHECKING:
    from sidecar.control.catalogue.option_rules import Values
    from sidecar.control.catalogue.yaml_document import YamlValue


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
    from sidecar.contract.spec_document import load_spec  # a fifth of a second, for pydantic
    from sidecar.mounter.supervisor.supervisor import become
    from sidecar.mounter.system.status import write_termination_message

    try:
        spec = load_spec(*read_text(spec_file, SpecInvalid, sha256=spec_sha256))
    except SidecarError as error:
        write_termination_message(TERMINATION_MESSAGE, error.line() + "\n")
        raise
    become(spec)


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


@cli.command("try")
@click.argument("url")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--read-only", is_flag=True, help="Programs cannot write.")
@click.option("--anonymous", is_flag=True, help="A public bucket: requests are not signed.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="As in docs/options.md.",
)
@click.option("--explain", is_flag=True, help="Print the catalogue's entry for it, and end.")
def try_(
    url: str,
    directory: Path,
    read_only: bool,
    anonymous: bool,
    options: tuple[str, ...],
    explain: bool,
) -> None:
    """Mount one bucket at DIR, in the foreground, until Ctrl-C.

    The login is that of this machine: the variables and files of the cloud's own tools. URL is
    s3://BUCKET, gs://BUCKET or wasbs://CONTAINER@ACCOUNT.blob.core.windows.net, with or without a
    prefix behind it.
    """
    from sidecar.demo.trial import Trial, run

    trial = Trial(url, os.path.abspath(directory), read_only, anonymous, parse_settings(options))
    if explain:
        click.echo(trial.catalogue_entry(), nl=False)
        return
    click.get_current_context().exit(run(trial, say=tell))


def parse_settings(settings: tuple[str, ...]) -> Values:
    """Options from ``NAME=VALUE``; lists as in YAML. Raises UsageError, ConfigError."""
    import yaml

    from sidecar.control.catalogue.option_rules import parse_options

    section: dict[str, YamlValue] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--option {setting}: must be NAME=VALUE")
        section[name] = value
        with contextlib.suppress(ValueError):
            section[name] = float(value)
        if value.startswith("["):
            try:
                section[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UsageError(f"--option {name}: must be a list such as [a, b]") from None
    return parse_options(section, "--option", of_pod=True)
