"""A second machine: what a server is to its store, and how its log gets to another server."""
