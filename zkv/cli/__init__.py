"""The commands ``zkv`` (for the server and its data) and ``zkv-cli`` (a client)."""
