"""Measures zkv beside other servers, and writes BENCHMARKS.md. Not part of the package.

    python -m benchmarks.run --json benchmarks/results.json      # make benchmark: everything
    python -m benchmarks.run --short                             # make bench: the main rows
    python -m benchmarks.report benchmarks/results.json BENCHMARKS.md

A comparison is fair if it differs in the server alone. Hence these rules:

- One program makes the load for all servers (`load.c`), with the same random keys and values, all
  stored before. So no client library is measured, and the client costs about the same for all.
- Servers take turns: a round measures each server once, and the next round begins with another
  server. A ratio is taken within a round, so that a busy machine affects both of its sides.
- A server is compared with those of the same group, which do the same for a write before they
  answer it.
- Everything is measured in two passes with servers started anew. The spread that is shown is that
  of the rounds of both.
- The record says how busy the machine was with other programs.

    rows      the measurements, as data
    servers   the servers, as data, and how they are started
    run       makes the measurements: writes the record
      load      runs load.c
      starts    start-up and memory
      clients   Python clients
      activity  the use of the machine by others
    record    the record, which is the JSON file
    report    the record as text, and in BENCHMARKS.md
"""
