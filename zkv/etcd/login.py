"""The token with which calls prove who makes them.

etcd hands out a token for user and password. It forgets tokens, after some minutes or a restart;
then it refuses a call, unexecuted, and a new token is asked for. The token is shared by all calls,
as each node knows it.
"""

from __future__ import annotations

import threading
from typing import Final

from zkv.etcd import rpc
from zkv.etcd.calls import CallError, Metadata
from zkv.etcd.channel import NodeChannel
from zkv.etcd.errors import UnknownOutcomeError

_OFF: Final = "authentication is not enabled"


class Login:
    """Gets tokens for a user. Any thread may call each method.

    Args:
        user: its name; empty without one: then nothing is asked for.
        password: its password.
    """

    def __init__(self, user: str, password: str) -> None:
        self.needed = bool(user)
        self.metadata: Metadata = ()
        """Each call carries it."""
        self._request = rpc.AuthenticateRequest(name=user, password=password)
        self._lock = threading.Lock()  # Held while a token is asked for: once for all who need it.
        self._has_asked = not user

    def token(self, node: NodeChannel, timeout: float) -> Metadata:
        """Return the token to use, which is asked for if there is none.

        Raises:
            CallError: the node refuses, or does not answer.
            UnknownOutcomeError: another thread is asking, and has no answer in time.
            EtcdClosedError: the client has been closed.
        """
        if not self._has_asked:
            self.renew(node, (), timeout)
        return self.metadata

    def renew(self, node: NodeChannel, stale: Metadata, timeout: float) -> None:
        """Ask for another token than ``stale``, unless another thread has done that.

        Raises:
            CallError: the node refuses, or does not answer.
            UnknownOutcomeError: another thread is asking, and has no answer in time.
            EtcdClosedError: the client has been closed.
        """
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise UnknownOutcomeError("no token came in time", node.endpoint)
        try:
            if not self._has_asked or self.metadata == stale:
                self._renew(node, timeout)
        finally:
            self._lock.release()

    def _renew(self, node: NodeChannel, timeout: float) -> None:
        try:
            answer = node.authenticate(self._request, timeout)
        except CallError as error:
            if _OFF not in error.details:
                raise
            self.metadata = ()  # A cluster without users takes anybody, as etcdctl also sees it.
        else:
            self.metadata = (("token", answer.token),)
        self._has_asked = True
