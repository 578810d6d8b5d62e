"""What a client of the server is told when something goes wrong, as the OpenAI API tells it."""

from typing import Any

from superscaler.errors import RequestError, ServingError
from superscaler.runtime.serving.server.engine_client import EngineGone

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(RequestError):
    """An answer that is an error.

    Args:
        what: What is wrong.
        status: Of HTTP.
        param: The field of the body that is wrong.
        code: A word for programs.
        remedy: What the user can do about it.
        retry_seconds: After which it is worth to try again.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        remedy: str = "",
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy, param=param)
        self.status, self.code, self.retry_seconds = status, code, retry_seconds

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        headers = {} if self.retry_seconds is None else {"retry-after": str(self.retry_seconds)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: Exception) -> ApiError:
    """The answer for any error: what users can mend is said to them, of others only that they happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(error.what, param=error.param, remedy=error.remedy)
    if isinstance(error, EngineGone):
        return ApiError(error.what, status=503, code="engine_gone", remedy=error.remedy)
    if isinstance(error, ServingError):
        return ApiError(error.what, status=500, code="engine_error", remedy=error.remedy)
    if isinstance(error, TimeoutError):
        return ApiError("the request took longer than the server allows", status=504, code="timeout")
    return ApiError("the server has made a mistake", status=500, code="internal_error", remedy="see its log")
