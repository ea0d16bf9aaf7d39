"""The Kubernetes API through its own client, and what its answers mean."""
