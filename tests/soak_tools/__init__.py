"""Strict testers of file systems, from public packages, on a mount: `make soak-tools`."""
