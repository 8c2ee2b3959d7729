"""The commands ``zkv`` (the server and its data) and ``zkv-cli`` (a client)."""
