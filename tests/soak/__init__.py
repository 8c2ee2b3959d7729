"""A long run with everything at once that could take the machine: ``make soak``."""
