"""Reads at the start of a run what its programs will want. Nothing depends on it."""
