"""Entries outside of a server: values as text, and entries in files and streams."""
