"""Reader processes: they fetch and answer READs beside the worker."""
