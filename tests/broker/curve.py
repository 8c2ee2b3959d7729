"""The handshake of CURVE by hand (https://rfc.zeromq.org/spec/26/), with metadata of one's own.

libzmq sends no property that it does not know itself. The cryptography is that of the libsodium
which pyzmq's wheels bring.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from tests.broker.zmtp import MORE, Wire, command, frame
from tests.support import Message, pack, unpack
from zkv.keys import KeyPair


@functools.cache
def sodium() -> ctypes.CDLL:
    """The library. Skips the test where there is none."""
    bundled = Path(zmq.__file__).parent.parent / "pyzmq.libs"
    found = [*map(str, bundled.glob("libsodium*")), ctypes.util.find_library("sodium")]
    if found[0] is None:
        pytest.skip("there is no libsodium")
    return ctypes.CDLL(found[0])


def new_pair() -> tuple[bytes, bytes]:
    """A public and a secret key."""
    public, secret = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    sodium().crypto_box_keypair(public, secret)
    return public.raw, secret.raw


def box(content: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    """Encrypt for the owner of a public key."""
    assert len(nonce) == 24
    out = ctypes.create_string_buffer(len(content) + 16)
    size = ctypes.c_ulonglong(len(content))
    assert sodium().crypto_box_easy(out, content, size, nonce, public, secret) == 0
    return out.raw


def unbox(content: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    """Decrypt; fails where it is not from the owner of the public key."""
    out = ctypes.create_string_buffer(len(content) - 16)
    size = ctypes.c_ulonglong(len(content))
    assert sodium().crypto_box_open_easy(out, content, size, nonce, public, secret) == 0
    return out.raw


class CurveWire(Wire):
    """A connection that has completed the handshake of CURVE.

    Args:
        endpoint: of the server.
        server_key: the server's public key, in Z85.
        pair: the client's key.
        metadata: what the client tells of itself.

    Raises:
        ConnectionError: the server has hung up.
    """

    def __init__(self, endpoint: str, server_key: str, pair: KeyPair, metadata: bytes) -> None:
        super().__init__(endpoint)
        try:
            self._shake_hands(server_key, pair, metadata)
        except BaseException:
            self.socket.close()
            raise

    def _shake_hands(self, server_key: str, pair: KeyPair, metadata: bytes) -> None:
        long_server = z85.decode(server_key)
        long_public, long_secret = z85.decode(pair.public), z85.decode(pair.secret)
        public, self._secret = new_pair()
        self.greet(b"CURVE")
        self._count = 1
        hello = box(bytes(64), self._nonce(b"CurveZMQHELLO---"), long_server, self._secret)
        self.socket.sendall(
            command(b"HELLO", b"\x01\x00" + bytes(72) + public + self._last + hello)
        )
        _, welcome = self.next_frame()
        assert welcome.startswith(b"\x07WELCOME")
        nonce = b"WELCOME-" + welcome[8:24]
        content = unbox(welcome[24:], nonce, long_server, self._secret)
        self._server, cookie = content[:32], content[32:]
        tail = os.urandom(16)
        vouch = tail + box(public + long_server, b"VOUCH---" + tail, self._server, long_secret)
        initiate = box(
            long_public + vouch + metadata,
            self._nonce(b"CurveZMQINITIATE"), self._server, self._secret,
        )  # fmt: skip
        self.socket.sendall(command(b"INITIATE", cookie + self._last + initiate))
        assert self.next_frame()[1].startswith(b"\x05READY")

    def _nonce(self, prefix: bytes) -> bytes:
        self._last = self._count.to_bytes(8, "big")
        self._count += 1
        return prefix + self._last

    def send_frame(self, content: bytes, flags: int = 0) -> None:
        """Send a frame of a message."""
        nonce = self._nonce(b"CurveZMQMESSAGEC")
        encrypted = box(bytes([flags]) + content, nonce, self._server, self._secret)
        self.socket.sendall(frame(b"\x07MESSAGE" + self._last + encrypted))

    def call(self, **fields: Any) -> Message:
        """Send a request as a DEALER does, and return its reply."""
        self.send_frame(b"", MORE)
        self.send_frame(pack(fields))
        assert self.receive_frame() == b""
        reply: Message = unpack(self.receive_frame())
        return reply

    def receive_frame(self) -> bytes:
        """The content of the next frame of a message."""
        _, content = self.next_frame()
        assert content.startswith(b"\x07MESSAGE"), content
        nonce = b"CurveZMQMESSAGES" + content[8:16]
        return unbox(content[16:], nonce, self._server, self._secret)[1:]
