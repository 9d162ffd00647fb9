"""The error that a client gets."""

from __future__ import annotations

from regnet_deploy.errors import RegnetDeployError


class RequestError(RegnetDeployError):
    """An error response to a request.

    Attributes:
        status: HTTP status: 4xx where the client has to change something, 503 and 504 where it can try again.
        retry_after_s: seconds after which it can; None: not said.
    """

    def __init__(self, message: str, status: int = 400, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = 1 if retry_after_s is None and status == 503 else retry_after_s
