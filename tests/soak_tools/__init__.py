"""Public file system test suites, run on a mount: `make soak-tools`."""
