"""A parser of HTTP requests for a server that speaks no other protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httptools


class Parser:
    """httptools' parser, which ignores an offer of another protocol (header ``Upgrade``).

    httptools ends such a request behind its head, whatever its ``Content-Length`` says, and takes the body for the next
    request: whoever can choose a body could send requests in another client's name. Here the head is parsed again
    without the header, which a server may ignore. The protocol must ignore callbacks while :attr:`is_upgrade_offered`.
    """

    def __init__(self, protocol: Any, head_without_upgrade: Callable[[], bytes]) -> None:
        """Create a parser.

        Args:
            protocol: gets httptools' callbacks.
            head_without_upgrade: returns the head of the request that is being parsed, without its header ``Upgrade``.
        """
        self._protocol, self._head_without_upgrade = protocol, head_without_upgrade
        self._parser = self._create_parser()

    def _create_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn sets it: bytes behind a request with "Connection: close" are not an error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def feed_data(self, data: bytes | memoryview) -> None:
        """Parse data.

        Raises:
            httptools.HttpParserError: the data is not a request.
        """
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self._parser = self._create_parser()  # the old one may have seen "Connection: close"
                self._parser.feed_data(head)
            else:
                return

    @property
    def is_upgrade_offered(self) -> bool:
        """Whether the request that is being parsed offers another protocol; its head will be parsed again."""
        return bool(self._parser.should_upgrade())

    def should_upgrade(self) -> bool:
        """Return False: uvicorn is not to upgrade."""
        return False

    def should_keep_alive(self) -> bool:
        """Return whether the connection stays open after this request."""
        return bool(self._parser.should_keep_alive())

    def get_http_version(self) -> str:
        """Return the HTTP version of the request that is being parsed."""
        return str(self._parser.get_http_version())

    def get_method(self) -> bytes:
        """Return the method of the request that is being parsed."""
        return bytes(self._parser.get_method())
