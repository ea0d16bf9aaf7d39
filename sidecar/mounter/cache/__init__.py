"""Whole versions of objects on local disk. Knows a store only by its interface."""
