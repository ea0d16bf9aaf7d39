"""An S3 that refuses what Amazon's documentation says is refused.

It is made from the documentation, independently of our client. Page names in the docstrings
are those of the Amazon S3 User Guide and API Reference.

A request passes ``http_front`` (bytes), ``service`` (who asks, is the bucket here), ``routes``
(which operation), ``…_operations`` and ``listing`` (what S3 does), ``state`` and ``data_files``
(what is kept). ``control`` is how a test sets ``limits``, ``pace``, ``faults`` and a bucket's
settings, and reads ``counters``.

Not made: versions of objects, signatures in URLs, keys of customers (SSE-C), lifecycle, and all
else that is answered NotImplemented.
"""
