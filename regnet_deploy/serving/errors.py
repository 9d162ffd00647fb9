"""What a client is told where it gets no answer."""

from __future__ import annotations

from regnet_deploy.errors import RegnetDeployError


class RequestError(RegnetDeployError):
    """A request that is not answered; ``status`` is the HTTP status that says why.

    Attributes:
        status: 4xx where the client is to change something, 503 and 504 where it is to come back.
        retry_after_s: seconds after which that is worth it; None where nothing is said.
    """

    def __init__(self, message: str, status: int = 400, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = 1 if retry_after_s is None and status == 503 else retry_after_s
