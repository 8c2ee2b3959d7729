"""The wire protocol without any socket: requests and replies as typed classes, and their codec."""
