"""From the kernel's requests to the file system: two ways, one conformance suite."""
