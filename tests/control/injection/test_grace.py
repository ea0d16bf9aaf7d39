"""How much longer a pod may take to end. Its value is in the golden manifests too."""

from __future__ import annotations

import pytest

from tests.control.injection.golden import NAMES
from tests.control.injection.test_disk import pods, spec_of


@pytest.mark.parametrize("name", NAMES)
def test_only_a_pod_that_can_have_something_to_save_gets_time_for_it(name: str) -> None:
    """An experiment that ignores SIGTERM would keep the pod as long."""
    for pod in pods(name):
        spec = spec_of(pod)
        writes = any(not volume.read_only for volume in spec.buckets)
        assert (spec.times.grace_s > 2) == writes
