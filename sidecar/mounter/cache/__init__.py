"""Versions of objects on local disk. Knows of the store only the description of an object."""
