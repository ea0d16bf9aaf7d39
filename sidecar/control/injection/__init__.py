"""From a pod to a patch that puts the sidecar into it. Pure."""
