"""Ranges of objects in: windows, readahead, buffers."""
