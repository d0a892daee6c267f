"""The OpenAI wire format, as far as routing needs it: a body and its headers become a profile and terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from economizer.errors import InvalidRequest
from economizer.gateway.body import Body
from economizer.router.types import Terms

ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}


def route_of(scope: Mapping[str, Any]) -> str:
    """The path of an ASGI request below where the application is mounted (Serve's ``route_prefix``)."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


_NUMBER, _INTEGER, _BOOLEAN = (int, float), (int,), (bool,)
_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "stream": (_BOOLEAN, "a boolean"),
    "stream_options": ((dict,), "an object"),
    "max_tokens": (_INTEGER, "an integer"),
    "max_completion_tokens": (_INTEGER, "an integer"),
    "max_output_tokens": (_INTEGER, "an integer"),
    "n": (_INTEGER, "an integer"),
    "seed": (_INTEGER, "an integer"),
    "temperature": (_NUMBER, "a number"),
    "top_p": (_NUMBER, "a number"),
    "presence_penalty": (_NUMBER, "a number"),
    "frequency_penalty": (_NUMBER, "a number"),
    "top_logprobs": (_INTEGER, "an integer"),
    "tools": ((list,), "an array"),
    "response_format": ((dict,), "an object"),
    "user": ((str,), "a string"),
    "service_tier": ((str,), "a string"),
    "economizer": ((dict,), "an object"),
}

# Term, its headers (the first is ours, the others are understood too), and what one header unit is in the term's unit.
_TERM_HEADERS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("ttft_s_max", ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms"), 1e-3),
    ("tpot_s_max", ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms"), 1e-3),
    ("e2e_s_max", ("x-slo-e2e-ms",), 1e-3),
    ("quality_min", ("x-quality-min",), 1.0),
    ("cost_usd_max", ("x-max-cost-usd",), 1.0),
    ("energy_j_max", ("x-max-energy-j",), 1.0),
    ("carbon_g_max", ("x-max-carbon-g",), 1.0),
)
_TERM_NAMES = tuple(term for term, _, _ in _TERM_HEADERS)
_NO_TERMS = Terms()
_TOKENS_MAX = 2**31 - 1
_CHOICES_MAX = 128  # as OpenAI has it
_SEQUENCES_MAX = 2048  # an eighth of what vLLM takes by default (VLLM_MAX_N_SEQUENCES)


class WireRequest(Struct, frozen=True, kw_only=True):
    """One request as it came over the wire, checked: what routing and relaying read of it.

    ``prompt_text`` is the prompt's text in order, for its length and its prefix only; it is never kept or logged.
    ``sequences`` is how many answers are asked for: choices, times prompts. ``wants_usage`` says that a stream's usage
    chunk was asked for, ``names_on_unmet`` that the request itself says what is to happen when its terms are not met.
    """

    endpoint: str
    body: Body
    model: str
    stream: bool
    wants_usage: bool
    terms: Terms
    names_on_unmet: bool
    needs: frozenset[str]
    prompt_text: str
    output_tokens_max: int | None
    sequences: int
    user: str


def read_request(endpoint: str, raw: bytes, headers: Mapping[str, str]) -> WireRequest:
    """Check a request and take from it what routing needs; raises InvalidRequest naming the field."""
    body = Body.read(raw)
    values = body.values
    model = values.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", model, "a string naming a model (see /v1/models)")
    for name, value in values.items():
        if value is not None and name in _TYPES:
            types, wanted = _TYPES[name]
            if not isinstance(value, types) or (bool not in types and isinstance(value, bool)):
                raise _wrong(name, value, wanted)
    options = values.get("stream_options") or {}
    stream = bool(values.get("stream"))
    prompt, needs = _prompt_and_needs(endpoint, values)
    return WireRequest(
        endpoint=endpoint,
        body=body,
        model=model,
        stream=stream,
        wants_usage=stream and (endpoint == "responses" or bool(options.get("include_usage"))),
        terms=read_terms(headers, values.get("economizer")),
        names_on_unmet="x-economizer-on-unmet" in headers or "on_unmet" in (values.get("economizer") or {}),
        needs=needs,
        prompt_text=prompt,
        output_tokens_max=0 if endpoint == "embeddings" else _output_cap(values),
        sequences=_sequences(endpoint, values),
        user=values.get("user") or "",
    )


def _sequences(endpoint: str, values: Mapping[str, Any]) -> int:
    prompts = values.get("prompt") if endpoint == "completions" else None
    several = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    choices = max(1, values.get("n") or 1)
    if choices > _CHOICES_MAX:
        raise _wrong("n", choices, f"at most {_CHOICES_MAX}")
    sequences = choices * (len(prompts) if several and isinstance(prompts, list) else 1)
    if sequences > _SEQUENCES_MAX:
        message = f"prompt asks for {sequences} answers (prompts times n): it must be at most {_SEQUENCES_MAX}."
        raise InvalidRequest(message, param="prompt")
    return sequences


def _output_cap(values: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        cap = values.get(name)
        if cap is not None:
            if not 0 <= cap <= _TOKENS_MAX:
                raise _wrong(name, cap, f"between 0 and {_TOKENS_MAX}")
            return int(cap)
    return None


def _prompt_and_needs(endpoint: str, values: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    needs: set[str] = set()
    if endpoint == "chat":
        messages = values.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _wrong("messages", messages, "an array of at least one message")
        texts = list(_message_texts(messages, "messages", needs))
        if values.get("logprobs"):
            needs.add("logprobs")
    elif endpoint == "completions":
        texts = list(_prompt_texts("prompt", values.get("prompt")))
    else:
        given = values.get("input")
        if endpoint == "responses" and isinstance(given, list) and given and isinstance(given[0], dict):
            texts = list(_message_texts(given, "input", needs))
        else:
            texts = list(_prompt_texts("input", given))
    if values.get("tools"):
        needs.add("tools")
        texts.append(str(values["tools"]))
    if (values.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        needs.add("json")
    return "\n".join(texts), frozenset(needs)


def _message_texts(messages: list[Any], field: str, needs: set[str]) -> Iterator[str]:
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"{field}[{index}]", message, "an object")
        role = message.get("role")
        if field == "messages" and not isinstance(role, str):
            raise _wrong(f"{field}[{index}].role", role, "a string")
        yield role if isinstance(role, str) else ""
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from _part_texts(content, f"{field}[{index}].content", needs)
        elif content is not None:
            raise _wrong(f"{field}[{index}].content", content, "a string, an array of parts, or null")


def _part_texts(parts: list[Any], field: str, needs: set[str]) -> Iterator[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            raise _wrong(f"{field}[{index}]", part, "an object")
        kind = str(part.get("type", ""))
        if "image" in kind or "video" in kind:
            needs.add("vision")
        elif "audio" in kind:
            needs.add("audio")
        text = part.get("text")
        if isinstance(text, str):
            yield text


def _prompt_texts(field: str, value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value:
        for item in value:
            if isinstance(item, str):
                yield item
            elif isinstance(item, list):
                yield "tok " * len(item)  # token ids: only their number matters here
            elif isinstance(item, int) and not isinstance(item, bool):
                yield "tok"
            else:
                raise _wrong(field, item, "a string, an array of strings, or token ids")
    else:
        raise _wrong(field, value, "a string, an array of strings, or token ids")


def read_terms(headers: Mapping[str, str], given: Mapping[str, Any] | None) -> Terms:
    """Terms from headers and from the body's ``economizer`` object, whose keys win; raises InvalidRequest."""
    values: dict[str, Any] = {}
    for term, names, unit in _TERM_HEADERS:
        for name in names:
            if name in headers:
                values[term] = number(name, headers[name]) * unit
                break
    if "x-economizer-policy" in headers:
        values["policy"] = headers["x-economizer-policy"]
    if "x-economizer-on-unmet" in headers:
        values["on_unmet"] = _on_unmet("x-economizer-on-unmet", headers["x-economizer-on-unmet"])
    for key, value in (given or {}).items():
        field = f"economizer.{key}"
        if value is None:
            continue
        if key in _TERM_NAMES:
            values[key] = number(field, value)
        elif key == "on_unmet":
            values[key] = _on_unmet(field, value)
        elif key == "policy":
            if not isinstance(value, str):
                raise _wrong(field, value, "a string")
            values[key] = value
        else:
            raise InvalidRequest(
                f"{field} is not known: economizer takes {', '.join(_TERM_NAMES)}, policy, on_unmet.", param=field
            )
    if not values:
        return _NO_TERMS
    try:
        return Terms(**values)
    except ValueError as error:
        raise InvalidRequest(f"The request's terms cannot be used: {error}.", param=str(error).split()[0]) from None


def number(name: str, value: Any) -> float:
    """A header's or a field's number, 0 or more; raises InvalidRequest naming it."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise _wrong(name, value, "a number, 0 or more")
    return number


def _on_unmet(name: str, value: Any) -> str:
    if value not in ("refuse", "degrade"):
        raise _wrong(name, value, "'refuse' or 'degrade'")
    return str(value)


def _wrong(name: str, value: Any, wanted: str) -> InvalidRequest:
    """A field of the wrong type or value. What the caller wrote is shown only where it cannot be a prompt."""
    scalar = isinstance(value, bool | int | float | str | type(None)) and "content" not in name
    shown = repr(value) if scalar and len(str(value)) <= 40 else f"a {type(value).__name__}"
    return InvalidRequest(f"{name} is {shown}: it must be {wanted}.", param=name)


def openapi_paths() -> dict[str, Any]:
    """The relayed endpoints for the OpenAPI document: OpenAI's bodies, and the headers that are read here."""
    names = [name for _, headers, _ in _TERM_HEADERS for name in headers]
    numbers = [
        {"name": name, "in": "header", "required": False, "schema": {"type": "number", "minimum": 0}} for name in names
    ]
    texts = [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in (
            *("x-economizer-policy", "x-economizer-on-unmet", "x-economizer-measure-wait-ms"),
            "x-session-id",
        )
    ]
    content = {"application/json": {"schema": {"type": "object", "required": ["model"]}}}
    return {
        path: {
            "post": {
                "summary": f"OpenAI's {endpoint}, relayed to the variant that is chosen",
                "operationId": f"relay_{endpoint}",
                "parameters": [*numbers, *texts],
                "requestBody": {"required": True, "content": content},
                "responses": {"200": {"description": "The engine's answer, with its receipt in usage.economizer"}},
            }
        }
        for path, endpoint in ENDPOINTS.items()
    }
