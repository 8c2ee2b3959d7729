"""From the body of a request to the body of its reply: one at a time, and many in the fast lane."""
