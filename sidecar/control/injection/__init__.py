"""From a pod to a patch that adds the sidecar. Pure."""
