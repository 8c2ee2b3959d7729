"""``zkv-bench``: measures a server under load, and puts it beside others of its kind.

The way of a run, and the module for each step:

    main         command line -> `Job`
    servers      starts the server to be measured, where asked
    generator    processes that make the load, started and stopped together, their figures merged
      drive        the loop of one such process: when to send, what to record
        workload     what to send, and whether the answer is right; `verify` knows the whole answer
          keys         which key comes next
        connections  how it travels: ZeroMQ, or the plain TCP of the peers in `dialects`
    result       figures, settings and machine as one record, which is also the JSON file
    show, plot   the record as text, CSV and pictures

`sweep` and `peers` make many runs of this kind; `report` writes BENCHMARKS.md from the latter.

The generator must not be what is measured. So a process has one loop and one thread of Python, the
requests are templates, and each run is set beside what the same loop reaches against a server that
answers a constant (`floor.c`).
"""
