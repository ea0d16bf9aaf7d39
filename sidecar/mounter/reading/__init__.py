"""Ranges of objects in: windows, readahead, buffers. Knows no inode."""
