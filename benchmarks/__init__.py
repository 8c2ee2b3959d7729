"""How zkv is compared with other servers: what BENCHMARKS.md is made with. Not shipped."""
