"""The mounter half: what runs in the sidecar container."""
