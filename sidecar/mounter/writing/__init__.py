"""Parts of objects out: the spool and its uploads."""
