"""Compares zkv with other servers, and writes BENCHMARKS.md. Not part of the package."""
