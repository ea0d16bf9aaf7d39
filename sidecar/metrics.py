"""Every metric: name, unit, labels. No other module names a metric.

Workers count and the health process reads, so the values are in memory-mapped files of
prometheus-client's multi-process mode. A file belongs to a volume and not to a process: a
restarted worker goes on counting where the last one stopped, and 500 restarts leave one file.

Source of the conventions: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sidecar.contract.spec import volume_label
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FILE_BYTES = 256 * 1024
"""Room for every series of one process; prometheus-client begins with 64 KiB."""
_FILE_KINDS = ("counter", "gauge_mostrecent", "gauge_sum", "histogram")
_PARTS_IN_FLIGHT = "mount_sidecar_in_flight_limit_parts"
_LATENCY_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)


def _open_values(directory: Path, identity: str) -> None:
    """Make prometheus-client use the files of ``identity``; called once, before any metric."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in _FILE_KINDS:
        _reserve(directory / f"{kind}_{identity}.db")
    os.environ[_DIRECTORY_VARIABLE] = str(directory)
    from prometheus_client import values

    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        process_identifier=lambda: identity
    )


def _reserve(path: Path) -> None:
    """Allocate the file's blocks: writing a mapped page on a full disk is SIGBUS (mmap(2))."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    finally:
        os.close(descriptor)


class VolumeMetrics:
    """The metrics of one process that serves a volume. Safe to use from any thread.

    Implements :class:`sidecar.mounter.store.interface.StoreObserver`.
    """

    def __init__(self, directory: Path, volume: str, identity: str) -> None:
        _open_values(directory, identity)
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("volume", *labels), registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ("volume",), registry=registry, multiprocess_mode="mostrecent")

        parts_in_flight = Gauge(
            _PARTS_IN_FLIGHT,
            "Parts that may be on their way at a time, each on a connection: as many as were found "
            "to make it faster",
            ("volume", "direction"),
            registry=registry,
            multiprocess_mode="sum",
        )

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                name, text, ("volume", *labels), registry=registry, buckets=_LATENCY_BUCKETS_S
            )

        self._volume = volume
        self._operations = histogram(
            "mount_sidecar_operation_duration_seconds",
            "Time the file system took for one operation of a program",
            "operation",
        )
        self._operation_errors = counter(
            "mount_sidecar_operation_errors_total",
            "File system operations that ended in an error, by stable code",
            "operation",
            "code",
        )
        self._requests = histogram(
            "mount_sidecar_store_request_duration_seconds",
            "Time one request to the object store took, retries not included",
            "operation",
        )
        self._request_errors = counter(
            "mount_sidecar_store_request_errors_total",
            "Requests to the object store that failed, by stable code",
            "operation",
            "code",
        )
        self._retries = counter(
            "mount_sidecar_store_retries_total",
            "Requests sent again, by reason",
            "operation",
            "reason",
        )
        bound = (volume,)
        self.throttled_seconds = counter(
            "mount_sidecar_store_throttled_seconds_total",
            "Time requests were held back because the store said there are too many",
        ).labels(*bound)
        self.read_bytes = counter(
            "mount_sidecar_read_bytes_total", "Bytes given to programs by read"
        ).labels(*bound)
        self.written_bytes = counter(
            "mount_sidecar_written_bytes_total", "Bytes taken from programs by write"
        ).labels(*bound)
        self.fetched_bytes = counter(
            "mount_sidecar_fetched_bytes_total", "Bytes of content read from the store"
        ).labels(*bound)
        self.uploaded_bytes = counter(
            "mount_sidecar_uploaded_bytes_total", "Bytes of content the store confirmed"
        ).labels(*bound)
        self.overwritten_versions = counter(
            "mount_sidecar_overwritten_versions_total",
            "Files saved over a version that somebody else had made since they were opened",
        ).labels(*bound)
        self.cache_hits = counter(
            "mount_sidecar_cache_hits_total", "Reads served without waiting for the store"
        ).labels(*bound)
        self.cache_misses = counter(
            "mount_sidecar_cache_misses_total", "Reads that had to wait for the store"
        ).labels(*bound)
        self.disk_hit_bytes = counter(
            "mount_sidecar_disk_cache_hit_bytes_total", "Bytes read from the disk cache"
        ).labels(*bound)
        self.damaged_blocks = counter(
            "mount_sidecar_disk_cache_damaged_blocks_total",
            "Blocks on disk that were torn or altered, and fetched again",
        ).labels(*bound)
        self.near_hit_bytes = counter(
            "mount_sidecar_near_hit_bytes_total", "Bytes read from the near bucket"
        ).labels(*bound)
        self.near_put_bytes = counter(
            "mount_sidecar_near_put_bytes_total", "Bytes put into the near bucket for other pods"
        ).labels(*bound)
        self.near_damaged_blocks = counter(
            "mount_sidecar_near_damaged_blocks_total",
            "Blocks of the near bucket that were not as they were put, and fetched from the store",
        ).labels(*bound)
        self._near_faults = counter(
            "mount_sidecar_near_faults_total",
            "Requests to the near bucket that failed, by stable code",
            "code",
        )
        self.stall_seconds = counter(
            "mount_sidecar_read_stall_seconds_total", "Time reads waited for the store"
        ).labels(*bound)
        self.hidden_keys = counter(
            "mount_sidecar_hidden_keys_total",
            "Keys left out of listings: shadowed, no path can spell them, or their entry is wrong",
            "reason",
        )
        self.passthrough_opens = counter(
            "mount_sidecar_passthrough_opens_total", "Opens served by the kernel from a local file"
        ).labels(*bound)
        self.refused_requests = counter(
            "mount_sidecar_refused_requests_total",
            "Requests of programs that ended one worker after another, and were refused with EIO",
        ).labels(*bound)
        self.open_handles = gauge("mount_sidecar_open_handles", "Files that programs hold open")
        self.open_handles = self.open_handles.labels(*bound)
        self.dirty_bytes = gauge(
            "mount_sidecar_dirty_bytes", "Bytes in files that the store does not have yet"
        ).labels(*bound)
        self.cache_used_bytes = gauge(
            "mount_sidecar_disk_cache_used_bytes", "Disk space that the cache folder occupies"
        ).labels(*bound)
        self._cache_limit_bytes = gauge(
            "mount_sidecar_disk_cache_limit_bytes",
            "Disk space that the cache folder may occupy; 0: the disk has no room for a cache",
        )
        self.spool_used_bytes = gauge(
            "mount_sidecar_spool_used_bytes", "Disk space that the spool occupies"
        ).labels(*bound)
        self.spool_limit_bytes = gauge(
            "mount_sidecar_spool_limit_bytes", "Disk space that the spool may occupy"
        ).labels(*bound)
        self.spool_memory_used_bytes = gauge(
            "mount_sidecar_spool_memory_used_bytes",
            "Memory of parts of new files that are on their way to the store",
        ).labels(*bound)
        self.memory_budget_ratio = gauge(
            "mount_sidecar_memory_budget_ratio",
            "Part of its memory budget that the worker uses: below 1 while memory is short",
        ).labels(*bound)
        self.memory_budget_ratio.set(1)
        self.parts_fetched_at_once = parts_in_flight.labels(volume, "read")
        self.parts_sent_at_once = parts_in_flight.labels(volume, "write")
        self._observe_operation: dict[str, Callable[[float], None]] = {}
        self._observe_request: dict[str, Callable[[float], None]] = {}

    def operation(self, operation: str, seconds: float, error: BaseException | None) -> None:
        """Count a file system operation that ended. ``error``: how it failed, or None."""
        observe = self._observe_operation.get(operation)
        if observe is None:
            observe = self._operations.labels(self._volume, operation).observe
            self._observe_operation[operation] = observe
        observe(seconds)
        if error is not None:
            code = error.code if isinstance(error, SidecarError) else "SC1000"
            self._operation_errors.labels(self._volume, operation, code).inc()

    def request(self, operation: str, seconds: float, code: str) -> None:
        """Count a store request that ended. ``code``: ``ok`` or a stable code."""
        observe = self._observe_request.get(operation)
        if observe is None:
            observe = self._requests.labels(self._volume, operation).observe
            self._observe_request[operation] = observe
        observe(seconds)
        if code != "ok":
            self._request_errors.labels(self._volume, operation, code).inc()

    def retried(self, operation: str, reason: str) -> None:
        """Count a store request that is sent again."""
        self._retries.labels(self._volume, operation, reason).inc()

    def near_failed(self, code: str) -> None:
        """Count a request to the near bucket that failed with a stable code."""
        self._near_faults.labels(self._volume, code).inc()

    def cache_limit(self, limit_bytes: int) -> None:
        """Set the disk cache's limit. A volume without a cache has no series."""
        self._cache_limit_bytes.labels(self._volume).set(limit_bytes)

    def hidden(self, reason: str) -> None:
        """Count a key that is left out of a listing. ``reason``: shadowed, name, entry."""
        self.hidden_keys.labels(self._volume, reason).inc()


class VolumeTotals(NamedTuple):
    """Sums over all processes of each volume, by the volume's label."""

    spool_used_bytes: dict[str, float]
    read_bytes: dict[str, float]
    cache_limit_bytes: dict[str, float]
    parts_in_flight: dict[str, dict[str, float]]
    """By direction: ``read`` or ``write``."""


def read_volume_totals(directory: Path) -> VolumeTotals:
    """The sums of the files that :class:`VolumeMetrics` writes."""
    directory.mkdir(parents=True, exist_ok=True)
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    totals = VolumeTotals({}, {}, {}, {})
    collector = MultiProcessCollector(CollectorRegistry(), path=str(directory))  # type: ignore[no-untyped-call]
    for metric in collector.collect():  # type: ignore[no-untyped-call]
        for sample in metric.samples:
            volume = sample.labels.get("volume", "")
            if sample.name == "mount_sidecar_spool_used_bytes":
                totals.spool_used_bytes[volume] = sample.value
            elif sample.name == "mount_sidecar_disk_cache_limit_bytes":
                totals.cache_limit_bytes[volume] = sample.value
            elif sample.name == "mount_sidecar_read_bytes_total":
                totals.read_bytes[volume] = sample.value
            elif sample.name == _PARTS_IN_FLIGHT:
                by_direction = totals.parts_in_flight.setdefault(volume, {})
                by_direction[sample.labels["direction"]] = sample.value
    return totals


class WebhookMetrics:
    """The metrics of the admission server, which is one process and shares nothing."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "mount_sidecar_webhook_request_duration_seconds",
            "Time the admission server computed for one request, by outcome",
            ("outcome",),
            registry=self._registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        self._errors = Counter(
            "mount_sidecar_webhook_errors_total",
            "Requests that were refused or malformed, by stable code",
            ("code",),
            registry=self._registry,
        )
        self._catalogue_valid = Gauge(
            "mount_sidecar_webhook_catalogue_valid",
            "0 while the catalogue cannot be read and an earlier one holds",
            registry=self._registry,
        )
        self._expires = Gauge(
            "mount_sidecar_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, in seconds since 1970",
            registry=self._registry,
        )

    def request(self, outcome: str, seconds: float, code: str | None) -> None:
        """One request was answered.

        Args:
            outcome: injected, unchanged, refused, malformed.
            code: stable code of the error; None if there was none.
        """
        self._requests.labels(outcome).observe(seconds)
        if code is not None:
            self._errors.labels(code).inc()

    def files(self, catalogue_valid: bool, certificate_expires_s: float) -> None:
        """Set the state of the files that the server reads."""
        self._catalogue_valid.set(1.0 if catalogue_valid else 0.0)
        self._expires.set(certificate_expires_s)

    def page(self) -> tuple[str, bytes]:
        """The content type and the content of ``/metrics``."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return CONTENT_TYPE_LATEST, generate_latest(self._registry)


class StatusCollector:
    """The supervisor's status as metrics, read at every scrape.

    Args:
        read_status: returns the status document (:mod:`sidecar.mounter.system.status`).
    """

    def __init__(self, read_status: Callable[[], dict[str, object]]) -> None:
        self._read_status = read_status

    def describe(self) -> Iterable[Metric]:
        """Nothing: otherwise prometheus-client would call :meth:`collect` at registration."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Mount states, restarts, what process 1 lacked, and the time to ready."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._read_status()
        ready = GaugeMetricFamily("mount_sidecar_ready", "1 while every selected volume is usable")
        ready.add_metric((), 1.0 if status.get("ready") else 0.0)
        yield ready
        if isinstance(seconds := status.get("time_to_ready_seconds"), int | float):
            taken = GaugeMetricFamily(
                "mount_sidecar_time_to_ready_seconds", "Time from start to ready"
            )
            taken.add_metric((), float(seconds))
            yield taken
        shortages = CounterMetricFamily(
            "mount_sidecar_supervisor_shortages",
            "Times that process 1 could not start, open or write for want of a resource, by errno",
            labels=("errno",),
        )
        lacking = status.get("shortages")
        for name, count in lacking.items() if isinstance(lacking, dict) else ():
            shortages.add_metric((name,), float(count))
        yield shortages
        hung = CounterMetricFamily(
            "mount_sidecar_hung_processes",
            "Processes of the sidecar that gave no sign of life, and were killed and replaced",
            labels=("process", "volume"),
        )
        killed = status.get("hung")
        for name, count in killed.items() if isinstance(killed, dict) else ():
            process, _, label = name.partition(" ")
            hung.add_metric((process, label), float(count))
        yield hung
        state = GaugeMetricFamily(
            "mount_sidecar_mount_state",
            "1 for the state that the volume is in",
            labels=("volume", "state"),
        )
        restarts = CounterMetricFamily(
            "mount_sidecar_worker_restarts",
            "Workers that died and were started again, by how the mount went on",
            labels=("volume", "healed"),
        )
        warmed_bytes = CounterMetricFamily(
            "mount_sidecar_warmed_bytes",
            "Bytes of files that the warm-up read",
            labels=("volume",),
        )
        warmed_names = CounterMetricFamily(
            "mount_sidecar_warmed_names",
            "Entries of folders that the warm-up read",
            labels=("volume",),
        )
        volumes = status.get("volumes")
        for volume in volumes if isinstance(volumes, list) else []:
            label = volume_label(volume["kind"], volume["name"])
            state.add_metric((label, volume["state"]), 1.0)
            if warmed := volume.get("warmed"):
                warmed_bytes.add_metric((label,), float(warmed["bytes"]))
                warmed_names.add_metric((label,), float(warmed["names"]))
            for healed, count in volume.get("healed", {}).items():
                restarts.add_metric((label, healed), float(count))
        yield state
        yield restarts
        yield warmed_bytes
        yield warmed_names


def scrape_registry(
    directory: Path, read_status: Callable[[], dict[str, object]]
) -> CollectorRegistry:
    """The registry that ``/metrics`` serves: every worker's values and the status."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ[_DIRECTORY_VARIABLE] = str(directory)
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    registry.register(StatusCollector(read_status))
    return registry
