"""Fails over again and again between three members of a replicated store: see `__main__`."""
