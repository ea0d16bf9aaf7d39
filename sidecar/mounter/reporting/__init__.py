"""What people and the cluster are told. Nothing waits for it."""
