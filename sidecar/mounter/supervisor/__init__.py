"""Process 1 of the container: starts, watches and ends all others. Standard library only."""
