"""Messages between processes: numbered, of known length, signed, and without pickle.

A message is a header (its number and length, and their HMAC-SHA256), the output of `pack`, and its
HMAC. Both ends share a secret key, so changed bytes and foreign messages are detected before they
are unpacked.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from typing import Any

from regard.core.errors import RegardError, fail
from regard.core.packing import Buffer, pack, unpack

KEY = 32
_HEADER = struct.Struct("<QQ32s")
# Bytes to receive from a socket at a time.
_PIECE = 1 << 20


class WireError(RegardError, ConnectionError):
    """A message was changed in transit, is out of order, or has another key."""


def new_key() -> bytes:
    """Return a new key for the two ends of a line."""
    return secrets.token_bytes(KEY)


class Line:
    """One end of a socket between two processes; `first` is true at one of them.

    >>> ours, theirs = socket.socketpair()
    >>> key = new_key()
    >>> Line(ours, key, first=True).send({"x": [1, 2]})
    >>> Line(theirs, key, first=False).receive()
    {'x': [1, 2]}
    """

    def __init__(self, end: socket.socket, key: bytes, *, first: bool) -> None:
        self.end, self._key = end, key
        self._names = (b"first", b"other") if first else (b"other", b"first")
        self._sent = self._received = 0

    def send(self, content: Any) -> None:
        """Send plain values and tensors."""
        parts = [memoryview(x).cast("B") for x in pack(content)]
        size = sum(x.nbytes for x in parts)
        head = self._sign(self._names[0], self._sent, size)
        body = self._signer(self._names[0], self._sent)
        self.end.sendall(_HEADER.pack(self._sent, size, head))
        for part in parts:
            if part.nbytes:
                body.update(part)
                self.end.sendall(part)
        self.end.sendall(body.digest())
        self._sent += 1

    def receive(self) -> Any:
        """Wait for the next message; raise EOFError if the other end has closed."""
        number, size, head = _HEADER.unpack(self._read(_HEADER.size))
        wanted = self._sign(self._names[1], number, size)
        if not hmac.compare_digest(head, wanted) or number != self._received:
            _refuse("a message that is not the next one of the other end")
        body, digest = self._read(size), self._read(hashlib.sha256().digest_size)
        signer = self._signer(self._names[1], number)
        signer.update(body)
        if not hmac.compare_digest(digest, signer.digest()):
            _refuse("a message that was changed in transit")
        self._received += 1
        return unpack(body)

    def close(self) -> None:
        """Close the socket."""
        self.end.close()

    def _signer(self, name: bytes, number: int) -> hmac.HMAC:
        return hmac.new(self._key, b"body %s %d " % (name, number), hashlib.sha256)

    def _sign(self, name: bytes, number: int, size: int) -> bytes:
        return hmac.digest(self._key, b"head %s %d %d" % (name, number, size), "sha256")

    def _read(self, size: int) -> Buffer:
        found = bytearray(size)
        at, view = 0, memoryview(found)
        while at < size:
            got = self.end.recv_into(view[at : at + _PIECE])
            if not got:
                raise EOFError("the other end has closed")
            at += got
        return found


def _refuse(got: str) -> None:
    fail(
        WireError, "message", got, "the messages of a process that has the key",
        "start the workers again: their messages cannot be trusted now",
    )  # fmt: skip
