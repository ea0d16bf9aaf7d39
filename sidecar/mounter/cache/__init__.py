"""Versions of objects on local disk, and blocks of them in a near bucket."""
