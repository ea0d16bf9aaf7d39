"""A bucket as a file system on inodes and handles."""
