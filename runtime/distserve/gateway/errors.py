"""What a client is told when something fails, in OpenAI's shape.

GatewayError
|- BadRequest 400        the client's mistake; `param` names the field
|  |- UnknownModel 404
|  `- BodyTooLarge 413
|- Unauthorized 401      internal pages only
|- Overloaded 429        too much waits; Retry-After says when to come back
|- ClientGone 499        nobody is left to be told
`- ServerFault 5xx
   |- EngineFailed 502   every attempt failed
   |- NoRoute 503        no complete set of instances that take it; Retry-After
   `- DeadlineExceeded 504
"""


class GatewayError(Exception):
    """Base of all errors that reach a client."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.status = status or self.status
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(self.retry_after_seconds)}


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class UnknownModel(BadRequest):
    status = 404
    code = "model_not_found"


class BodyTooLarge(BadRequest):
    status = 413
    code = "request_too_large"


class Unauthorized(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Overloaded(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class ClientGone(GatewayError):
    status = 499
    code = "client_closed_request"


class ServerFault(GatewayError):
    """Not the client's doing."""


class EngineFailed(ServerFault):
    status = 502
    code = "engine_failed"


class NoRoute(ServerFault):
    status = 503
    code = "no_ready_instance"


class DeadlineExceeded(ServerFault):
    status = 504
    code = "request_timeout"
