import json
from typing import Any

import pytest
from economizer.errors import InvalidRequest
from economizer.gateway.body import Body
from economizer.gateway.openai import ENDPOINTS, WireRequest, openapi_paths, read_request, read_terms, route_of
from economizer.router.types import Terms
from hypothesis import given
from hypothesis import strategies as st

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def read(body: Any, endpoint: str = "chat", headers: dict[str, str] | None = None) -> WireRequest:
    return read_request(endpoint, json.dumps(body).encode(), headers or {})


def refusal(body: Any, endpoint: str = "chat", headers: dict[str, str] | None = None) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        read(body, endpoint, headers)
    assert refused.value.status == 400
    return refused.value.message, refused.value.param


def test_a_chat_request_is_read_as_far_as_routing_needs_it() -> None:
    body = {
        **CHAT,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 20,
        "user": "ann",
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_object"},
        "economizer": {"policy": "green", "quality_min": 0.9},
        "unheard_of": [1],
    }
    raw = json.dumps(body).encode()
    assert read_request("chat", raw, {"x-slo-ttft-ms": "250"}) == WireRequest(
        endpoint="chat",
        body=Body.read(raw),
        model="m",
        stream=True,
        wants_usage=True,
        terms=Terms(ttft_s_max=0.25, quality_min=0.9, policy="green"),
        names_on_unmet=False,
        needs=frozenset({"tools", "json"}),
        prompt_text="user\nhello\n[{'type': 'function'}]",
        output_tokens_max=20,
        sequences=1,
        user="ann",
    )


def test_a_plain_request_asks_for_nothing() -> None:
    wire = read(CHAT)
    assert (wire.stream, wire.wants_usage, wire.terms) == (False, False, Terms())
    assert (wire.needs, wire.output_tokens_max, wire.user) == (frozenset(), None, "")


def test_fields_that_are_null_count_as_absent() -> None:
    nothing = dict.fromkeys(
        ("stream", "stream_options", "max_tokens", "tools", "response_format", "user", "economizer", "logprobs")
    )
    whole, plain = read({**CHAT, **nothing}), read(CHAT)
    assert (whole.terms, whole.needs, whole.output_tokens_max) == (plain.terms, plain.needs, plain.output_tokens_max)


@pytest.mark.parametrize(
    ("stream", "options", "endpoint", "wants"),
    [
        (True, {"include_usage": True}, "chat", True),
        (True, {"include_usage": False}, "chat", False),
        (True, None, "chat", False),
        (False, {"include_usage": True}, "chat", False),
        (True, None, "responses", True),  # the Responses API always sends it
        (False, None, "responses", False),
    ],
)
def test_a_streams_usage_is_sent_where_openai_would(
    stream: bool, options: dict[str, bool] | None, endpoint: str, wants: bool
) -> None:
    body = {**CHAT, "input": "hello", "stream": stream, "stream_options": options}
    assert read(body, endpoint).wants_usage == wants


@pytest.mark.parametrize(
    ("endpoint", "field", "value", "text"),
    [
        ("completions", "prompt", "a b", "a b"),
        ("completions", "prompt", ["a", "b"], "a\nb"),
        ("completions", "prompt", [11, 12], "tok\ntok"),
        ("completions", "prompt", [[11, 12, 13], [14]], "tok tok tok \ntok "),
        ("embeddings", "input", ["a", "b"], "a\nb"),
        ("responses", "input", "a", "a"),
        ("responses", "input", [{"role": "user", "content": "a"}, {"type": "function_call"}], "user\na\n"),
    ],
)
def test_the_text_of_a_prompt_is_read_for_its_length(endpoint: str, field: str, value: object, text: str) -> None:
    assert read({"model": "m", field: value}, endpoint).prompt_text == text


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        ("text", frozenset()),
        ("image_url", frozenset({"vision"})),
        ("input_image", frozenset({"vision"})),
        ("video_url", frozenset({"vision"})),
        ("input_audio", frozenset({"audio"})),
    ],
)
def test_a_part_that_is_no_text_needs_a_variant_that_takes_it(kind: str, needs: frozenset[str]) -> None:
    wire = read({"model": "m", "messages": [{"role": "user", "content": [{"type": kind, "text": "see"}]}]})
    assert (wire.needs, wire.prompt_text) == (needs, "user\nsee")


def test_logprobs_need_a_variant_that_gives_them() -> None:
    assert read({**CHAT, "logprobs": True}).needs == {"logprobs"}
    assert read({**CHAT, "logprobs": False}).needs == set()


@pytest.mark.parametrize(
    ("fields", "cap"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_output_tokens": 0}, 0),
        ({}, None),
    ],
)
def test_the_callers_cap_is_the_newest_of_its_names(fields: dict[str, int], cap: int | None) -> None:
    assert read({**CHAT, **fields}).output_tokens_max == cap


def test_an_embedding_has_no_answer_tokens() -> None:
    assert read({"model": "m", "input": "a"}, "embeddings").output_tokens_max == 0


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "model is None: it must be a string naming a model (see /v1/models).", "model"),
        ({"model": ""}, "model is '': it must be a string naming a model (see /v1/models).", "model"),
        ({"model": 3}, "model is 3: it must be a string naming a model (see /v1/models).", "model"),
        ({"model": "m"}, "messages is None: it must be an array of at least one message.", "messages"),
        ({**CHAT, "messages": []}, "messages is a list: it must be an array of at least one message.", "messages"),
        ({**CHAT, "messages": ["hi"]}, "messages[0] is 'hi': it must be an object.", "messages[0]"),
        ({**CHAT, "messages": [{}]}, "messages[0].role is None: it must be a string.", "messages[0].role"),
        (
            {**CHAT, "messages": [{"role": "user", "content": 3}]},
            "messages[0].content is a int: it must be a string, an array of parts, or null.",
            "messages[0].content",
        ),
        (
            {**CHAT, "messages": [{"role": "user", "content": ["secret"]}]},
            "messages[0].content[0] is a str: it must be an object.",
            "messages[0].content[0]",
        ),
        ({**CHAT, "stream": "yes"}, "stream is 'yes': it must be a boolean.", "stream"),
        ({**CHAT, "max_tokens": True}, "max_tokens is True: it must be an integer.", "max_tokens"),
        ({**CHAT, "max_tokens": 1.5}, "max_tokens is 1.5: it must be an integer.", "max_tokens"),
        ({**CHAT, "max_tokens": -1}, "max_tokens is -1: it must be between 0 and 2147483647.", "max_tokens"),
        ({**CHAT, "temperature": "hot"}, "temperature is 'hot': it must be a number.", "temperature"),
        ({**CHAT, "tools": {}}, "tools is a dict: it must be an array.", "tools"),
        ({**CHAT, "economizer": []}, "economizer is a list: it must be an object.", "economizer"),
        (
            {**CHAT, "economizer": {"quality": 1}},
            "economizer.quality is not known: economizer takes ttft_s_max, tpot_s_max, e2e_s_max, quality_min, "
            "cost_usd_max, energy_j_max, carbon_g_max, policy, on_unmet.",
            "economizer.quality",
        ),
        (
            {**CHAT, "economizer": {"quality_min": 1.5}},
            "The request's terms cannot be used: quality_min is 1.5: must be between 0 and 1.",
            "quality_min",
        ),
        (
            {**CHAT, "economizer": {"ttft_s_max": -1}},
            "economizer.ttft_s_max is -1: it must be a number, 0 or more.",
            "economizer.ttft_s_max",
        ),
        (
            {**CHAT, "economizer": {"ttft_s_max": True}},
            "economizer.ttft_s_max is True: it must be a number, 0 or more.",
            "economizer.ttft_s_max",
        ),
        (
            {**CHAT, "economizer": {"policy": 3}},
            "economizer.policy is 3: it must be a string.",
            "economizer.policy",
        ),
        (
            {**CHAT, "economizer": {"on_unmet": "beg"}},
            "economizer.on_unmet is 'beg': it must be 'refuse' or 'degrade'.",
            "economizer.on_unmet",
        ),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_value_and_rule(body: Any, message: str, param: str) -> None:
    assert refusal(body) == (message, param)


@pytest.mark.parametrize("value", [None, [], {}, 3, [True], [1.5], ["a", {}], [None]])
@pytest.mark.parametrize(("endpoint", "field"), [("completions", "prompt"), ("embeddings", "input")])
def test_a_prompt_is_text_or_token_ids(endpoint: str, field: str, value: object) -> None:
    message, param = refusal({"model": "m", field: value}, endpoint)
    assert message.endswith("it must be a string, an array of strings, or token ids.")
    assert param == field


@pytest.mark.parametrize("number", ["9" * 400, "1" + "0" * 308 + "0", "1e999", "NaN", "Infinity", "-Infinity"])
def test_a_number_too_large_for_a_term_is_refused(number: str) -> None:
    raw = f'{{"model":"m","messages":[{{"role":"user"}}],"economizer":{{"cost_usd_max":{number}}}}}'
    with pytest.raises(InvalidRequest, match=r"^economizer\.cost_usd_max is .*: it must be a number, 0 or more\.$"):
        read_request("chat", raw.encode(), {})


def test_a_long_value_is_not_echoed() -> None:
    assert refusal({**CHAT, "stream": "x" * 41}) == ("stream is a str: it must be a boolean.", "stream")
    assert len(refusal({**CHAT, "max_tokens": int("-" + "9" * 4000)})[0]) < 200


def test_the_deepest_body_that_can_be_read_is_read_whole() -> None:
    for depth in range(900, 1100):
        raw = '{"model":"m","messages":[{"role":"user"}],"tools":[' + "[" * depth + "]" * depth + "]}"
        try:
            read_request("chat", raw.encode(), {})
        except InvalidRequest as refused:
            assert refused.message == "The body must be JSON nested less deeply."  # noqa: PT017


@pytest.mark.parametrize(
    ("headers", "terms"),
    [
        ({"x-slo-ttft-ms": "250"}, Terms(ttft_s_max=0.25)),
        ({"x-llm-d-slo-ttft-ms": "250"}, Terms(ttft_s_max=0.25)),
        ({"x-slo-ttft-ms": "250", "x-llm-d-slo-ttft-ms": "1"}, Terms(ttft_s_max=0.25)),
        ({"x-slo-tpot-ms": "50"}, Terms(tpot_s_max=0.05)),
        ({"x-llm-d-slo-tpot-ms": "50"}, Terms(tpot_s_max=0.05)),
        ({"x-slo-e2e-ms": "1e3"}, Terms(e2e_s_max=1.0)),
        ({"x-quality-min": "0.9"}, Terms(quality_min=0.9)),
        ({"x-max-cost-usd": "0.5"}, Terms(cost_usd_max=0.5)),
        ({"x-max-energy-j": "5"}, Terms(energy_j_max=5.0)),
        ({"x-max-carbon-g": "0"}, Terms(carbon_g_max=0.0)),
        ({"x-economizer-policy": "green"}, Terms(policy="green")),
        ({"x-economizer-on-unmet": "degrade"}, Terms(on_unmet="degrade")),
        ({"x-other": "1"}, Terms()),
    ],
)
def test_terms_come_as_headers_in_the_units_of_their_names(headers: dict[str, str], terms: Terms) -> None:
    assert read_terms(headers, None) == terms


def test_the_bodys_terms_win_over_the_headers() -> None:
    headers = {"x-quality-min": "0.5", "x-max-cost-usd": "1", "x-economizer-policy": "fast"}
    given = {"quality_min": 0.9, "policy": "green", "on_unmet": "degrade", "cost_usd_max": None}
    assert read_terms(headers, given) == Terms(quality_min=0.9, cost_usd_max=1.0, policy="green", on_unmet="degrade")


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf", "1e999", "0x10"])
def test_a_header_that_is_no_number_is_named(value: str) -> None:
    message, param = refusal(CHAT, headers={"x-slo-e2e-ms": value})
    assert message == f"x-slo-e2e-ms is {value!r}: it must be a number, 0 or more."
    assert param == "x-slo-e2e-ms"


# "Bad input gets a clear error": whatever stands anywhere in a request, it is read or refused.
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.text(alphabet=st.characters(categories=("Cs", "Ll")), max_size=3),
        st.sampled_from(["degrade", "green", "json_object", "image_url", "user", "", 0, -1, 1.5, 10**400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "text", "role", "content", "policy", "x"]), inner, max_size=3),
    ),
    max_leaves=4,
)
FIELDS = [
    *("model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("max_output_tokens", "n", "seed", "temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("top_logprobs", "logprobs", "tools", "response_format", "user", "service_tier", "economizer", "other"),
]
TERMS = ["ttft_s_max", "tpot_s_max", "e2e_s_max", "quality_min", "cost_usd_max", "energy_j_max", "carbon_g_max"]
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user") | anything},
        optional={"content": st.lists(st.dictionaries(st.sampled_from(["type", "text"]), anything), max_size=2)},
    )
    | anything,
    max_size=2,
)
bodies = st.builds(
    lambda base, extra: {**base, **extra},
    st.fixed_dictionaries({"model": st.just("m"), "messages": messages, "prompt": st.just("p"), "input": messages}),
    st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3)
    | st.fixed_dictionaries(
        {"economizer": st.dictionaries(st.sampled_from([*TERMS, "policy", "on_unmet", "x"]), anything, max_size=3)}
    ),
)
headers = st.dictionaries(
    st.sampled_from(
        ["x-slo-ttft-ms", "x-quality-min", "x-max-cost-usd", "x-economizer-policy", "x-economizer-on-unmet"]
    ),
    st.text(alphabet=st.characters(max_codepoint=255), max_size=5) | st.sampled_from(["1", "0.5", "refuse"]),
    max_size=2,
)


def read_or_refused(endpoint: str, raw: bytes, headers: dict[str, str]) -> None:
    """Any exception but InvalidRequest would be an error 500 for the caller."""
    refusal: InvalidRequest | None = None
    try:
        wire = read_request(endpoint, raw, headers)
    except InvalidRequest as refused:
        refusal = refused
    if refusal is not None:
        json.dumps(refusal.body()).encode()
        assert refusal.param is None or isinstance(refusal.param, str)
        assert refusal.message.endswith(".")
    else:
        assert isinstance(wire.prompt_text, str)
        assert isinstance(wire.user, str)
        assert wire.output_tokens_max is None or wire.output_tokens_max >= 0
        wire.body.for_engine("m@full")


NASTY: list[Any] = [None, True, False, 0, -1, 2**63, 10**400, -(10**400), 0.5, 1e308, float("nan"), float("inf")]
NASTY += [
    "",
    "1",
    "\ud800",
    "\x00",
    "degrade",
    [],
    [[]],
    [None],
    [{}],
    ["a"],
    [1],
    {},
    {"": None},
    {"type": 1},
    {"type": []},
]


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS.values()))
@pytest.mark.parametrize("field", [*FIELDS, *(f"economizer.{term}" for term in [*TERMS, "policy", "on_unmet", ""])])
def test_every_kind_of_value_in_every_field_is_read_or_refused(endpoint: str, field: str) -> None:
    outer, dot, inner = field.partition(".")
    for value in NASTY:
        body = {**CHAT, "prompt": "p", "input": "i", outer: {inner: value} if dot else value}
        read_or_refused(endpoint, json.dumps(body).encode(), {})


@given(st.sampled_from(sorted(ENDPOINTS.values())), bodies, headers)
def test_any_value_anywhere_is_read_or_refused(endpoint: str, body: dict[str, Any], headers: dict[str, str]) -> None:
    read_or_refused(endpoint, json.dumps(body).encode(), headers)


@given(st.sampled_from(sorted(ENDPOINTS.values())), anything)
def test_any_json_value_is_read_or_refused(endpoint: str, body: object) -> None:
    read_or_refused(endpoint, json.dumps(body).encode(), {})


def test_every_endpoint_and_header_is_documented() -> None:
    paths = openapi_paths()
    assert sorted(paths) == sorted(ENDPOINTS)
    named = {parameter["name"] for parameter in paths["/v1/chat/completions"]["post"]["parameters"]}
    assert named == {
        *("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms", "x-slo-tpot-ms", "x-llm-d-slo-tpot-ms", "x-slo-e2e-ms"),
        *("x-quality-min", "x-max-cost-usd", "x-max-energy-j", "x-max-carbon-g"),
        *("x-economizer-policy", "x-economizer-on-unmet", "x-economizer-measure-wait-ms", "x-session-id"),
    }


@pytest.mark.parametrize(
    ("endpoint", "body", "sequences"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x"}], "n": 8}, 8),
        ("completions", {"prompt": ["a", "b", "c"], "n": 2}, 6),
        ("completions", {"prompt": [1, 2, 3]}, 1),  # one prompt of token ids
        ("completions", {"prompt": [[1], [2]]}, 2),
    ],
)
def test_the_answers_asked_for_are_choices_times_prompts(endpoint: str, body: dict[str, Any], sequences: int) -> None:
    assert read_request(endpoint, json.dumps({"model": "m", **body}).encode(), {}).sequences == sequences


def test_as_many_answers_may_be_asked_for_as_openai_gives_and_an_engine_takes() -> None:
    assert read({**CHAT, "n": 128}).sequences == 128
    assert read({"model": "m", "prompt": ["a"] * 16, "n": 128}, "completions").sequences == 2048
    assert refusal({**CHAT, "n": 129}) == ("n is 129: it must be at most 128.", "n")
    assert refusal({"model": "m", "prompt": ["a"] * 2000, "n": 2**31 - 1}, "completions") == (
        "n is 2147483647: it must be at most 128.",
        "n",
    )
    assert refusal({"model": "m", "prompt": ["a"] * 1025, "n": 2}, "completions") == (
        "prompt asks for 2050 answers (prompts times n): it must be at most 2048.",
        "prompt",
    )


@pytest.mark.parametrize(
    ("root_path", "path"), [("", "/v1/completions"), ("/llm", "/llm/v1/completions"), ("/llm", "/v1/completions")]
)
def test_a_route_is_what_is_below_the_place_where_the_application_is_mounted(root_path: str, path: str) -> None:
    assert route_of({"path": path, "root_path": root_path}) == "/v1/completions"
