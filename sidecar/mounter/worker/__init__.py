"""The process of one bucket, wired from the parts of the other folders."""
