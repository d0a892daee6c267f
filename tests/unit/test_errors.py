import inspect
import json

import pytest
from economizer import errors
from economizer.errors import ConfigurationError, EconomizerError, Mistake, Overloaded, TermsUnmet


def concrete(kind: type[EconomizerError] = EconomizerError) -> list[type[EconomizerError]]:
    return [kind, *(each for under in kind.__subclasses__() for each in concrete(under))]


TREE = [kind for kind in concrete() if kind.__module__ == "economizer.errors"]


def test_every_error_is_under_one_root() -> None:
    defined = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert set(TREE) == defined


@pytest.mark.parametrize(
    ("name", "status", "kind", "code"),
    [
        ("EconomizerError", 500, "server_error", None),
        ("ConfigurationError", 500, "server_error", None),
        ("InvalidRequest", 400, "invalid_request_error", None),
        ("BodyTooLarge", 413, "invalid_request_error", "body_too_large"),
        ("ModelNotFound", 404, "invalid_request_error", "model_not_found"),
        ("ReceiptNotFound", 404, "invalid_request_error", "receipt_not_found"),
        ("ContextTooLong", 400, "invalid_request_error", "context_length_exceeded"),
        ("FeatureUnsupported", 400, "invalid_request_error", "feature_unsupported"),
        ("TermsUnmet", 422, "invalid_request_error", "terms_unmet"),
        ("Overloaded", 429, "rate_limit_error", "rate_limit_exceeded"),
        ("NotReady", 503, "service_unavailable_error", "not_ready"),
        ("EngineFailed", 502, "server_error", "engine_failed"),
        ("EngineTimeout", 504, "server_error", "engine_timeout"),
    ],
)
def test_each_error_has_its_status_type_and_code(name: str, status: int, kind: str, code: str | None) -> None:
    error: type[EconomizerError] = getattr(errors, name)
    assert (error.status, error.type, error.code) == (status, kind, code)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: str(kind.__name__))
def test_the_modules_drawing_names_every_error_and_its_status(kind: type[EconomizerError]) -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line]
    assert len(lines) == 1
    assert ("--" if kind is ConfigurationError else str(kind.status)) in lines[0].split()


def test_the_body_is_openais_object_with_all_four_keys() -> None:
    assert TermsUnmet("too dear", param="cost_usd_max").body() == {
        "error": {
            "message": "too dear",
            "type": "invalid_request_error",
            "param": "cost_usd_max",
            "code": "terms_unmet",
        }
    }
    assert json.dumps(Overloaded("full", retry_after_s=2.0).body()) == (
        '{"error": {"message": "full", "type": "rate_limit_error", "param": null, "code": "rate_limit_exceeded"}}'
    )


def test_a_configuration_error_lists_every_mistake_with_path_value_and_rule() -> None:
    mistakes = (Mistake(path="a.b", value="3", rule="must be 4"), Mistake(path="c", value="'x'", rule="must be known"))
    error = ConfigurationError("config.yaml", mistakes)
    assert error.message == "config.yaml: 2 mistakes\n  a.b: 3: must be 4\n  c: 'x': must be known"
    assert error.mistakes == mistakes
    assert ConfigurationError("config.yaml", mistakes[:1]).message == "config.yaml: 1 mistake\n  a.b: 3: must be 4"
