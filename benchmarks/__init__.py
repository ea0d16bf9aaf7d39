"""Benchmarks: our mount, its peers and the floor client, in one run on one machine.

Layout, for whoever adds a row::

    workloads.py   what is done and measured; issues add classes here, and only here
    peers.py       the mounts that are compared: settings, start, certain end
    floor.py       the cheapest client that Python can be, without any file system
    servers.py     the object store, and the data set that lies in it
    runner.py      rounds, one result document (JSON)
    report.py      that document as a table with ratios
    processes.py   children: CPU time, memory, end without leftovers
    mounts.py      the mount table
    host.py        what the numbers depend on: machine, kernel, versions

Nothing here is imported by the product, and of the product only :mod:`sidecar.spec` is
imported: our mount is started by its command, as a pod would start it.
"""
