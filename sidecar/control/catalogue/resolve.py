"""Catalogue and selection to PersistenceSpec: pure, no I/O.

Rules beyond README.md's "The catalogue":

- A catalogue without outputs volumes gives a run without outputs: ``outputs_path`` is None
  and ``POLYAXON_RUN_OUTPUTS_PATH`` is not set. A catalogue whose outputs volumes are all
  read-only is an error.
- No ``mountPath`` may overlap the sidecar's own directories
  (:mod:`sidecar.contract.spec_rules`). The shared emptyDir holds only FUSE mounts: at the pod's
  end a kubelet deletes through anything else mounted in it (decision 17).
- An option is set by the pod, else by the volume, else by the cluster (:mod:`.options`).
- With ``paths="urls"`` the variables hold URLs for buckets, which are mounted all the same.
  Other volumes have no URL and keep their path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import (
    DATA_PATHS_VARIABLE,
    OUTPUTS_PATH_VARIABLE,
    Kind,
    NodeCache,
    PersistenceSpec,
    Roots,
    StoreSource,
    Volume,
)
from sidecar.contract.spec_document import nearest
from sidecar.contract.spec_rules import check_spec, shared_path
from sidecar.control.catalogue.catalogue import Catalogue, DeclaredVolume
from sidecar.control.catalogue.cluster_settings import KEY
from sidecar.control.catalogue.option_rules import Layer, combined
from sidecar.control.catalogue.run_options import NO_OPTIONS, RunOptions, check_run_options
from sidecar.control.catalogue.selection import Selection
from sidecar.errors import (
    DuplicateSelection,
    OptionInvalid,
    OutputsMissing,
    OutputsReadOnly,
    VolumeUnknown,
)

Paths = Literal["local", "urls"]
"""What the experiment's variables hold for buckets."""


def resolve(
    catalogue: Catalogue,
    selection: Selection,
    *,
    run: str = "",
    paths: Paths = "local",
    roots: Roots | None = None,
    options: RunOptions = NO_OPTIONS,
) -> PersistenceSpec:
    """The spec of one run.

    Args:
        catalogue: what the admin declares.
        selection: what the run asks for.
        run: path of the run below the outputs volume; empty for the volume itself.
        paths: ``local``: the variables hold the paths of buckets; ``urls``: their URLs.
        roots: the sidecar's own directories; None for the defaults.
        options: what the run sets.

    Raises:
        ConfigError: the selection breaks a rule of the catalogue, two paths overlap, or the run
            sets an option that it may not set.
    """
    roots = roots or Roots()
    chosen = _select_data(catalogue, selection)
    chosen_outputs = _select_outputs(catalogue, selection)
    check_run_options(
        options, [*chosen, *([chosen_outputs] if chosen_outputs else [])], catalogue.cluster.bounds
    )
    data = [_volume(declared, roots, catalogue, options) for declared in chosen]
    outputs = _volume(chosen_outputs, roots, catalogue, options) if chosen_outputs else None
    volumes = (*data, outputs) if outputs else tuple(data)
    environment = {
        DATA_PATHS_VARIABLE: json.dumps({volume.name: _exported(volume, paths) for volume in data})
    }
    if outputs:
        environment[OUTPUTS_PATH_VARIABLE] = _joined(_exported(outputs, paths), run)
    spec = PersistenceSpec(
        run=run,
        volumes=volumes,
        outputs_path=_joined(outputs.path, run) if outputs else None,
        environment=environment,
        roots=roots,
        times=combined([_cluster_layer(catalogue), options.for_all], Times)[0],
        node_cache=_node_cache(volumes, catalogue),
    )
    check_spec(spec)
    return spec


def _node_cache(volumes: Iterable[Volume], catalogue: Catalogue) -> NodeCache:
    """The node's cache as the admin has it, if a volume uses it."""
    uses = any(volume.options.cache == "node" for volume in volumes)
    return (catalogue.cluster.node_cache if uses else None) or NodeCache()


def _cluster_layer(catalogue: Catalogue) -> Layer:
    return Layer("cluster", catalogue.cluster.options)


def _volume(
    declared: DeclaredVolume, roots: Roots, catalogue: Catalogue, options: RunOptions
) -> Volume:
    layers = [
        _cluster_layer(catalogue),
        Layer("volume", declared.options),
        *options.layers(declared),
    ]
    is_bucket = isinstance(declared.source, StoreSource)
    chosen, origins = combined(layers if is_bucket else [], Options)
    if chosen.cache == "node" and catalogue.cluster.node_cache is None:
        raise OptionInvalid(
            f"volume {declared.label}: its cache is the node's (set by the {origins['cache']}), "
            "and the cluster has none",
            f"set `{KEY}.nodeCache` in the catalogue",
        )
    path = declared.mount_path or shared_path(roots, declared.kind, declared.name)
    return Volume(
        name=declared.name,
        kind=declared.kind,
        path=path,
        read_only=declared.read_only,
        source=declared.source,
        mountpoint=path if is_bucket else None,
        near=declared.near,
        options=chosen,
        origins=origins,
    )


def _select_data(catalogue: Catalogue, selection: Selection) -> list[DeclaredVolume]:
    if selection.data is None:
        return list(catalogue.data)
    declared = {volume.name: volume for volume in catalogue.data}
    chosen: dict[str, DeclaredVolume] = {}
    for index, name in enumerate(selection.data):
        where = f"{selection.origin}.data[{index}]"
        volume = _find(declared, "data", name, where)
        if name in chosen:
            raise DuplicateSelection(f"{where}: `{name}` is already in the list", "name it once")
        chosen[name] = volume
    return list(chosen.values())


def _select_outputs(catalogue: Catalogue, selection: Selection) -> DeclaredVolume | None:
    if selection.outputs is not None:
        where = f"{selection.origin}.outputs"
        declared = {volume.name: volume for volume in catalogue.outputs}
        volume = _find(declared, "outputs", selection.outputs, where)
        if volume.read_only:
            raise OutputsReadOnly(
                f"{where}: `{volume.name}` is read-only in the catalogue",
                f"writable are: {_listed(_writable(catalogue)) or 'none'}",
            )
        return volume
    if not catalogue.outputs:
        return None
    writable = _writable(catalogue)
    if not writable:
        raise OutputsMissing(
            f"every outputs volume is read-only: {_listed(list(catalogue.outputs))}",
            "declare one without `readOnly: true`",
        )
    return writable[0]


def _writable(catalogue: Catalogue) -> list[DeclaredVolume]:
    return [volume for volume in catalogue.outputs if not volume.read_only]


def _find(
    declared: Mapping[str, DeclaredVolume], kind: Kind, name: str, where: str
) -> DeclaredVolume:
    if name in declared:
        return declared[name]
    raise VolumeUnknown(
        f"{where}: no {kind} volume is named `{name}`{nearest(name, list(declared))}",
        f"the catalogue declares: {', '.join(declared) or 'none'}",
    )


def _listed(volumes: list[DeclaredVolume]) -> str:
    return ", ".join(volume.name for volume in volumes)


def _exported(volume: Volume, paths: Paths) -> str:
    if paths == "urls" and isinstance(volume.source, StoreSource):
        return volume.source.url.rstrip("/")
    return volume.path


def _joined(base: str, run: str) -> str:
    return f"{base}/{run}" if run else base
