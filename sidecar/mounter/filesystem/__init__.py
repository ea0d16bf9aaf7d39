"""A bucket as a file system on nodes and handles; knows neither an SDK nor FUSE."""
