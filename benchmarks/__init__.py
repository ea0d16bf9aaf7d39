"""Benchmarks: our mount, its peers and the floor client, in one run on one machine.

Layout, for whoever adds a row::

    workloads.py      every row by name, and how large it is
    reading.py  small_files.py  metadata.py  startup.py
                      the rows by kind; issues add classes here
    measure.py        what a row is and reports; how a cost is taken
    datasets.py       what lies in the bucket; the check of what comes out
    peers.py          the mounts that are compared: settings, start, certain end
    servers.py        the object store, over HTTP, TLS or added latency (latency.py)
    floor.py          the cheapest client that Python can be, without any file system
    readers.py  epochs.py  lists.py
                      the other clients, as programs (programs.py); crew.py: their threads
    runner.py         rounds, one result document (JSON)
    ratios.py         ours over theirs
    targets.py        what has to be reached
    report.py  plot.py
                      that document as text and as a picture
    page.py           our own metrics and status
    processes.py      children: CPU time, memory, end without leftovers
    mounts.py         the mount table
    host.py           what the numbers depend on: machine, kernel, versions
    transports.py  clients.py
                      the two transports beside each other, a command of its own

Nothing here is imported by the product. Our mount is started by its command, as a pod would
start it; of the product's code the rows import only :mod:`sidecar.spec`, directly or through
:mod:`tests.support`.
"""
