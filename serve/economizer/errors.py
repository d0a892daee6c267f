"""Every error that Economizer raises on purpose, and what a caller sees of it.

::

    EconomizerError                     500  server_error
    ├── ConfigurationError              --   a configuration file with every mistake in it
    ├── InvalidRequest                  400  invalid_request_error
    │   ├── BodyTooLarge                413
    │   ├── ModelNotFound               404  model_not_found
    │   ├── ReceiptNotFound             404  receipt_not_found
    │   ├── ContextTooLong              400  context_length_exceeded
    │   ├── FeatureUnsupported          400  feature_unsupported
    │   └── TermsUnmet                  422  terms_unmet
    ├── KeyRefused                      401  invalid_api_key
    │   └── NotAllowed                  403  permission_denied
    ├── Overloaded                      429  rate_limit_exceeded     (Retry-After)
    │   └── QuotaSpent                  429  insufficient_quota      (Retry-After)
    ├── LedgerGone                      503  ledger_unavailable      (Retry-After)
    ├── NotReady                        503  not_ready               (Retry-After)
    ├── EngineFailed                    502  engine_failed
    │   ├── BadEngineAnswer             502
    │   └── CheckpointDamaged           502
    └── EngineTimeout                   504  engine_timeout

Each makes its own OpenAI error object, whose four keys are ``message, type, param, code``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


def require(holds: bool, field_name: str, value: object, rule: str) -> None:
    """Raise ValueError naming the field, its value and the rule when the rule does not hold."""
    if not holds:
        raise ValueError(f"{field_name} is {value!r}: {rule}")


class EconomizerError(Exception):
    """An error that a caller may see, with its HTTP status and OpenAI's type and code."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error object, all four keys present."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One thing wrong in a configuration: the key's path, the value found there, and the rule it breaks."""

    path: str
    value: str
    rule: str

    def __str__(self) -> str:
        return f"{self.path}: {self.value}: {self.rule}"


class ConfigurationError(EconomizerError):
    """A configuration that cannot be used; carries every mistake at once."""

    def __init__(self, source: str, mistakes: tuple[Mistake, ...]) -> None:
        self.source = source
        self.mistakes = mistakes
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        super().__init__(f"{source}: {len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}\n{lines}")


class InvalidRequest(EconomizerError):
    """The caller's request cannot be understood or served as it stands."""

    status = 400
    type = "invalid_request_error"


class BodyTooLarge(InvalidRequest):
    """The body is over the configured size."""

    status = 413
    code = "body_too_large"


class ModelNotFound(InvalidRequest):
    """No family, variant or LoRA adapter has this name."""

    status = 404
    code = "model_not_found"


class ReceiptNotFound(InvalidRequest):
    """No receipt with this id is kept."""

    status = 404
    code = "receipt_not_found"


class ContextTooLong(InvalidRequest):
    """The prompt and the wanted answer exceed every variant's context."""

    code = "context_length_exceeded"


class FeatureUnsupported(InvalidRequest):
    """No variant of the family has a feature that the request needs."""

    code = "feature_unsupported"


class TermsUnmet(InvalidRequest):
    """No variant can meet the caller's terms; the message names each variant and the term it fails."""

    status = 422
    code = "terms_unmet"


class Overloaded(EconomizerError):
    """Too many requests are waiting already."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaSpent(Overloaded):
    """A hard end of the tenant's budget is reached."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class KeyRefused(EconomizerError):
    """No key, or one that does not exist, was revoked or has expired."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotAllowed(KeyRefused):
    """The key is known, but may not do this."""

    status = 403
    code = "permission_denied"


class LedgerGone(EconomizerError):
    """Nothing can be booked now, and the configuration says that requests then stop."""

    status = 503
    type = "service_unavailable_error"
    code = "ledger_unavailable"


class NotReady(EconomizerError):
    """No variant that may serve the request is ready."""

    status = 503
    type = "service_unavailable_error"
    code = "not_ready"


class EngineFailed(EconomizerError):
    """The engine broke the connection, or could not be reached."""

    status = 502
    code = "engine_failed"


class BadEngineAnswer(EngineFailed):
    """The engine answered, but with a failure of its own, or with what is not an answer. It may be well otherwise."""


class CheckpointDamaged(EngineFailed):
    """The engine was not started: its model's files are not as their manifest says."""


class EngineTimeout(EconomizerError):
    """The engine did not answer, or stopped answering, within the configured time."""

    status = 504
    code = "engine_timeout"
