"""``zkv-bench``: measures a server under load.

The way of a run, and the module for each step:

    main         command line -> `Job`
    servers      starts the server to be measured, where asked
    generator    processes that make the load, started and stopped together, their figures merged
      drive        the loop of one such process: when to send, what to record
        workload     what to send, and whether the answer is right; `verify` knows the whole answer
          keys         which key comes next
        connections  how it travels: many connections over one ZeroMQ socket
    result       figures, settings and machine as one record, which is also the JSON file
    show, plot   the record as text, CSV and pictures

`sweep` makes many runs of this kind. How zkv is compared with others is in `benchmarks/`.

The generator must not be what is measured. So a process has one loop and one thread of Python, the
requests are templates, and each run is set beside what the same loop reaches against a server that
answers a constant (`floor.c`).
"""
