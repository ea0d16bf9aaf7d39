"""Runs in the venv of the real client: prints what its tracking API returns."""

import collections
import collections.abc
import json
import sys

# The client, of 2019, expects these names in collections; Python 3.10 removed them there.
for name in collections.abc.__all__:
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))

from polyaxon_client.tracking import Experiment, get_data_paths, get_outputs_path  # noqa: E402

sys.stdout.write(
    json.dumps(
        {
            "data_paths": get_data_paths(),
            "experiment_data_paths": Experiment.get_data_paths(),
            "outputs_path": get_outputs_path(),
        }
    )
)
