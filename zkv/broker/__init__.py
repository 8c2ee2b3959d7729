"""Everything that touches a server socket: the front, the mailboxes, the workers and the feed."""
