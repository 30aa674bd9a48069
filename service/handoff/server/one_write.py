"""Sends the head of a response together with its body.

uvicorn writes them one after the other, and each write is a system call and, to the client, a packet. A system call costs
more than anything else that is done for a call.
"""

from typing import Any, Final

_LENGTH: Final = b"\r\ncontent-length: "  # as uvicorn writes it; a body of a known length follows such a head at once


class OneWrite:
    """A connection's transport that keeps the head of a response until its body is written."""

    __slots__ = ("__dict__", "_head", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""
        # What is called for each request is called without a detour.
        self.is_closing = transport.is_closing
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write a head with its body, and everything else as it is."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and _LENGTH in data:
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write a head that no body follows."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Close the connection once everything has been sent."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """End the sending side once everything has been sent."""
        self.flush()
        self._transport.write_eof()
