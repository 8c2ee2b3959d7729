"""A replicated store: several members, of which one leads, and a log in etcd that they share."""
