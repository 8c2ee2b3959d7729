"""Everything that touches a server socket: the proxy, the mailboxes and the workers."""
