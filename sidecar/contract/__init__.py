"""The spec, which the two halves share, and what both know of pods, paths and options."""
