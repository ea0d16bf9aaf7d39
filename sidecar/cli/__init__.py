"""The command line of `sidecar`: options in, calls out."""
