"""The command line of `sidecar`: options in, calls out. It decides nothing."""
