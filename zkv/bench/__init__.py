"""``zkv-bench``: measures a server under load.

The steps of a run and their modules:

    main         parses the command line into a `LoadJob`
    measure      makes the run from end to end
    servers      starts the server to measure, if asked to
    generator    the processes that make the load: starts and stops them, merges their figures
      drive        the loop of one process: when to send, what to record
        workload     the requests, and the check of replies; `verify` checks their contents
          keys         the distribution of keys
        connections  many connections over one ZeroMQ socket
    result       figures, settings and machine in one record, which is also the JSON file
    show, plot   the record as text, CSV and pictures

`sweep` makes many runs at rising rates. `benchmarks/` compares zkv with other servers.

The result must not be limited by the generator. So a process has one loop in one Python thread,
requests are made from templates, and before each run the same load is measured against a server
that answers a constant (`floor.c`).
"""
