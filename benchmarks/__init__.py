"""Benchmarks: our mount, its peers and the floor client, in one run on one machine.

Layout, for whoever adds a row::

    workloads.py      the list of workloads and their sizes
    reading.py  writing.py  small_files.py  metadata.py  round_trips.py  startup.py  models.py
                      the workloads, by kind
    measure.py        the interface of a workload, metrics, CPU and memory cost
    datasets.py       the objects in the bucket; the check of what a mount returns
    peers.py          a mount that is compared: start, stop; ours
    others.py         the mounts of others, with their settings
    networks.py       which store a workload uses, and how clients reach it
    servers.py        the stores; latency.py: the proxy that adds latency
    sendfile_server.py  far_store.py  memory_objects.py  s3_answers.py
                      a store of our own that costs next to nothing, or behaves as S3 does
    spool_disk.py     a disk for what mounts spool, as slow as a node's
    buckets.py        a store's address, and the clouds' own clients
    stored.py         what a store has, to see what a write has brought
    floor.py  floor_uploads.py
                      the cheapest possible clients in Python, without a file system
    readers.py  writers.py  epochs.py  lists.py  model_programs.py
                      the other clients, run as programs (programs.py); crew.py: their threads
    runner.py         the rounds, and the result document (JSON)
    ratios.py         ours divided by theirs
    targets.py        the ratios and values that are required
    report.py  plot.py  readme.py
                      the result document as text, as a plot, and as the tables of README.md
    page.py           our own metrics and status
    processes.py      child processes: CPU time, memory, stopping all of them
    mounts.py         the mount table
    host.py           machine, kernel, commit
    transports.py  clients.py
                      a separate command: compares the two transports
    near.py           another one: many mounts beside a near bucket
    warm.py           another one: a run's first minute, with and without a warm-up
    faults.py         another one: ten minutes with connections that break and addresses that die

The product imports nothing from here. Our mount is started by its command, as in a pod.
"""
