"""The transport of one answer, which sends an answer's head and body at once."""

from __future__ import annotations

from typing import Any

#: Of an answer up to which it is copied behind its head.
_COPIED_BYTES = 64 * 2**10

#: What uvicorn writes when an application begins to read a body whose client waits to be asked for it.
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class CoalescingTransport:
    """A transport on which an answer's head waits for what is written next: one call of the system for both.

    ``100 Continue`` waits for nothing, and is not sent once there is an answer: by then nobody wants the body.
    """

    __slots__ = ("_begun", "_head", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport, self._head, self._begun = transport, b"", False

    def write(self, data: bytes) -> None:
        """Keep the head, or write what is kept and this."""
        if data == _CONTINUE:
            if not self._begun:
                self._transport.write(data)
        elif not self._begun:
            self._head, self._begun = data, True
        elif self._head:
            head, self._head = self._head, b""
            if len(data) < _COPIED_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write what is kept."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Write what is kept, and close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Return what else the transport has."""
        return getattr(self._transport, name)
