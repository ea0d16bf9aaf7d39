"""The bytes of open files: in the spool, and from there to the store."""
