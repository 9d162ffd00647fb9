"""A parser of HTTP requests for a server that speaks nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httptools


class Parser:
    """httptools' parser, to which a request that offers another protocol (``Upgrade``) is one like any other.

    httptools takes such a request for one without a body, whatever its head says, and what is its body for the next
    request: that of whoever wrote the body. So the head is parsed again without the offer, which a server may ignore.
    The protocol has to leave alone what it is told while :attr:`is_offered` says so.
    """

    def __init__(self, protocol: Any, head: Callable[[], bytes]) -> None:
        """``head`` makes the head of the request that is being parsed anew, without its offer."""
        self._protocol, self._head = protocol, head
        self._parser = self._fresh()

    def _fresh(self) -> Any:
        parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn has it: what comes behind a request that is the last one of its connection is not an error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def feed_data(self, data: bytes | memoryview) -> None:
        """Parse what has arrived.

        Raises:
            httptools.HttpParserError: it is no request.
        """
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = memoryview(data)[offer.args[0] :]
                head = self._head()
                self._parser = self._fresh()  # the old one may have seen the end of its connection
                self._parser.feed_data(head)
            else:
                return

    @property
    def is_offered(self) -> bool:
        """The request that is being parsed offers another protocol; it comes again without."""
        return bool(self._parser.should_upgrade())

    def should_upgrade(self) -> bool:
        """Tell uvicorn that it does not."""
        return False

    def should_keep_alive(self) -> bool:
        """Tell whether the connection lasts longer than the request."""
        return bool(self._parser.should_keep_alive())

    def get_http_version(self) -> str:
        """Return the version of the request that is being parsed."""
        return str(self._parser.get_http_version())

    def get_method(self) -> bytes:
        """Return the method of the request that is being parsed."""
        return bytes(self._parser.get_method())
