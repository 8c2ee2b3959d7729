"""The figures of a server for Prometheus: their text, and the HTTP endpoint that serves it."""
