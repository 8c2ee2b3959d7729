"""Users: who may connect, and what each may read, write and do.

Importing this package imports nothing; its modules are imported where they are used.
"""
