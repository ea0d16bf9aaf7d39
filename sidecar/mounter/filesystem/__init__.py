"""A bucket as a file system on inodes and handles; knows neither an SDK nor FUSE."""
