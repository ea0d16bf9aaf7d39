"""Reader processes, which fetch and answer READs beside the worker."""
