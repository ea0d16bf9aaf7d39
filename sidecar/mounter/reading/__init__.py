"""Ranges of objects in: windows, read-ahead, buffers. Knows no inode."""
