"""Bytes of /dev/fuse to calls of the file system, and back."""
