import json
from collections.abc import Sequence
from typing import Any

import pytest
from economizer.errors import InvalidRequest
from economizer.gateway.body import Body, add_to_usage, scan_object
from hypothesis import example, given, settings
from hypothesis import strategies as st


def for_engine(text: str, model: str = "m@int8") -> str:
    return Body.read(text.encode()).for_engine(model).decode()


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ('{"model":"m"}', '{"model":"m@int8"}'),
        ('{ "model" : "m" , "n" : 1 }', '{ "model" : "m@int8" , "n" : 1 }'),
        ('{"n":1.50e+1,"model":"m"}', '{"n":1.50e+1,"model":"m@int8"}'),
        ('{"mod\\u0065l":"m"}', '{"mod\\u0065l":"m@int8"}'),
        ('{"model":"a","model":"b"}', '{"model":"m@int8","model":"m@int8"}'),
        ('{"economizer":{"policy":"green"},"model":"m"}', '{"model":"m@int8"}'),
        ('{"model":"m", "economizer":{}}', '{"model":"m@int8"}'),
        ('{"model":"m", "economizer":{} , "n":1}', '{"model":"m@int8", "n":1}'),
        ('{"economizer":{}}', "{}"),
        ('{"economizer":1,"economizer":2}', "{}"),
        ('{"model":"m","economizer":1,"economizer":2}', '{"model":"m@int8"}'),
        ('{"economizer":1,"model":"m","economizer":2,"n":1,"economizer":3}', '{"model":"m@int8","n":1}'),
        ('{"n":{"model":"m","economizer":1}}', '{"n":{"model":"m","economizer":1}}'),
        ("{}", "{}"),
    ],
)
def test_the_engine_gets_the_body_with_its_model_and_without_economizer(text: str, sent: str) -> None:
    assert for_engine(text) == sent


def test_a_models_name_is_written_as_json() -> None:
    assert for_engine('{"model":"m"}', 'a"b\n') == '{"model":"a\\"b\\n"}'


# JSON text as callers may write it, kept beside the pieces that it is made of.
space = st.text(alphabet=" \t\n\r", max_size=2)
text = st.text(alphabet=st.characters(codec="utf-8"), max_size=6)
strings = st.one_of(
    text.map(json.dumps),
    text.map(lambda value: json.dumps(value, ensure_ascii=False)),
    st.sampled_from(['"\\ud83d\\ude00"', '"\\ud800"', '"\\/\\b"', '"}, \\"model\\": {"', '"\u2028"']),
)
scalars = st.one_of(
    strings,
    st.sampled_from(
        ["null", "true", "false", "0", "-0.0", "1E400", "1e-999", "12345678901234567890123.4500", "9" * 60]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]"),
        st.lists(st.tuples(strings, inner), max_size=3).map(
            lambda pairs: "{" + " ,".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=4,
)
special = ['"model"', '"economizer"', '"n"', '"economizer"', '"mode\\u006c"', '"economize\\u0072"']
keys = st.sampled_from(special) | strings
members = st.lists(st.tuples(space, keys, space, space, scalars | values, space), max_size=6)


def written(parts: Sequence[tuple[str, ...]]) -> str:
    inside = ",".join(f"{a}{key}{b}:{c}{value}{d}" for a, key, b, c, value, d in parts)
    return " {" + inside + "}\n"


def pairs(text: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    return found


def plain(*keys: str) -> list[tuple[str, str, str, str, str, str]]:
    return [("", f'"{key}"', "", "", "1", "") for key in keys]


@settings(max_examples=200)
@given(members)
@example(plain("n", "economizer", "economizer"))
@example(plain("economizer", "n", "economizer", "model", "economizer"))
def test_parsed_the_engines_body_is_the_callers_with_model_replaced_and_economizer_gone(
    parts: Sequence[tuple[str, ...]],
) -> None:
    caller = pairs(written(parts))
    wanted = [(key, "m@int8" if key == "model" else value) for key, value in caller if key != "economizer"]
    assert pairs(for_engine(written(parts))) == wanted


@given(members)
def test_every_other_character_reaches_the_engine_as_the_caller_wrote_it(parts: Sequence[tuple[str, ...]]) -> None:
    sent = for_engine(written(parts))
    at = sent.index("{") + 1
    kept = [part for part in parts if json.loads(part[1]) != "economizer"]
    for _, key, before, after, value, _ in kept:
        passed = '"m@int8"' if json.loads(key) == "model" else value
        member = f"{key}{before}:{after}{passed}"
        found = sent.index(member, at)
        assert set(sent[at:found]) <= set(" ,\t\n\r")
        at = found + len(member)
    assert set(sent[at:]) <= set(" }\t\n\r")
    if len(kept) == len(parts):
        as_sent = [(a, k, b, c, '"m@int8"' if json.loads(k) == "model" else v, d) for a, k, b, c, v, d in parts]
        assert sent == written(as_sent)


@given(members)
def test_members_are_found_with_their_places_in_the_text(parts: Sequence[tuple[str, ...]]) -> None:
    whole = written(parts)
    found = scan_object(whole)
    assert [(member.key, repr(member.value)) for member in found] == [
        (json.loads(key), repr(json.loads(value))) for _, key, _, _, value, _ in parts
    ]
    assert [whole[member.value_start : member.end] for member in found] == [value for _, _, _, _, value, _ in parts]
    assert [whole[member.start] for member in found] == ['"'] * len(found)


def test_of_a_key_given_twice_the_last_value_counts() -> None:
    body = Body.read(b'{"model":"a","model":"b"}')
    assert body.values == {"model": "b"}
    assert body.for_engine("m@v") == b'{"model":"m@v","model":"m@v"}'


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "The body must be JSON: Expecting value at line 1, column 1."),
        (b"[1]", "The body must be a JSON object."),
        (b"null", "The body must be a JSON object."),
        (b"{", "The body must be JSON: Expecting property name enclosed in double quotes at line 1, column 2."),
        (b'{"a":1,}', "The body must be JSON: Expecting property name enclosed in double quotes at line 1, column 8."),
        (b'{"a" 1}', "The body must be JSON: Expecting ':' delimiter at line 1, column 6."),
        (b'{"a":}', "The body must be JSON: Expecting value at line 1, column 6."),
        (b'{"a":\n 1 2}', "The body must be JSON: Expecting ',' delimiter at line 2, column 4."),
        (b'{"a":1}x', "The body must be JSON: Extra data at line 1, column 8."),
        (b'{"a":"\n"}', "The body must be JSON: Invalid control character at at line 1, column 7."),
        (b'{"a":"\xff"}', "The body must be UTF-8: byte 6 is not."),
        (b'{"a":' + b"[" * 100_000, "The body must be JSON nested less deeply."),
        (b'{"a":' + b"9" * 5000 + b"}", "The body must be JSON with numbers of fewer digits."),
    ],
)
def test_what_is_not_a_json_object_is_refused_with_its_place(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Body.read(raw)
    assert (refused.value.message, refused.value.param) == (message, "body")


@given(st.one_of(st.binary(max_size=40), st.text(alphabet='{}[]",:\\ \ntruenl01.eE-', max_size=40).map(str.encode)))
def test_any_bytes_are_json_or_are_refused(raw: bytes) -> None:
    try:
        body = Body.read(raw)
    except InvalidRequest:
        return
    assert json.loads(raw) == body.values


RECEIPT = '{"variant":"int8"}'


def add(raw: bytes, addition: str | None = RECEIPT) -> bytes:
    return add_to_usage(raw, lambda values: addition)


@pytest.mark.parametrize(
    ("answer", "receipted"),
    [
        (b'{"usage":{"a": 1.0}, "x":1}', b'{"usage":{"a": 1.0,"economizer":{"variant":"int8"}}, "x":1}'),
        (b'{"usage":{ }}', b'{"usage":{ "economizer":{"variant":"int8"}}}'),
        (b' {"response" : {"usage":{"a":1}}}', b' {"response" : {"usage":{"a":1,"economizer":{"variant":"int8"}}}}'),
        ('{"é":"ü","usage":{"a":1}}'.encode(), '{"é":"ü","usage":{"a":1,"economizer":{"variant":"int8"}}}'.encode()),
    ],
)
def test_a_receipt_is_added_at_the_end_of_usage(answer: bytes, receipted: bytes) -> None:
    assert add(answer) == receipted


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not json",
        b"[DONE]",
        b'{"usage":{"a":1}',
        b'{"usage":null}',
        b'{"usage":[1]}',
        b'{"response":null}',
        b'{"response":{"usage":null}}',
        b'{"x":{"usage":{}}}',
        b'{"usage":{"a":"\xff"}}',
        b'{"usage":{"a":' + b"[" * 100_000,
    ],
)
def test_what_has_no_usage_is_passed_on_as_it_is(answer: bytes) -> None:
    assert add(answer) is answer


def test_nothing_is_added_where_there_is_nothing_to_say() -> None:
    answer = b'{"usage":{"a":1}}'
    assert add(answer, None) is answer


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"a","x":{"model":"b"}}',  # another, deeper
        b'{"x":"model","model":"a"}',
        b'{"\\u006dodel":"a","x":{"model":"a"}}',  # an escape hides the key
        b'{"x":"\\"model\\":","model":"a"}',
        b'{ "model" : "a" }',
        b'{"x":"\\u00e9","model":"a"}',
    ],
)
def test_the_answers_own_model_is_set_wherever_else_the_word_stands(raw: bytes) -> None:
    wanted = json.loads(raw)
    wanted["model"] = "m@v"
    assert json.loads(Body.read(raw).for_engine("m@v")) == wanted


@pytest.mark.parametrize(
    "answer",
    [
        b'{"usage":{"a":1},"service_tier":null,"prompt_logprobs":null,"system_fingerprint":"fp"}',
        b'{"usage":{"a":1},"choices":[{"usage":{"b":2}}]}',  # one that is not the answer's own comes later
        b'{"choices":[{"text":"\\"usage\\": {}"}],"usage":{"a":1}}',
        b'{"usage":{"a":1},"x":"\\"usage\\":{\\"b\\":2}"}',
        b'{"usage" : {"a":1} , "n": -1.5e3 } ',
    ],
)
def test_the_receipt_goes_into_the_answers_own_usage(answer: bytes) -> None:
    wanted = json.loads(answer)
    wanted["usage"]["economizer"] = {"c": 3}
    assert json.loads(add_to_usage(answer, lambda usage: '{"c":3}')) == wanted


def test_who_writes_the_receipt_is_shown_the_usage() -> None:
    seen: list[dict[str, Any]] = []

    def note(usage: dict[str, Any]) -> None:
        seen.append(usage)

    add_to_usage(b'{"id":"x","usage":{"a":1}}', note)
    assert seen == [{"a": 1}]


@given(members, st.lists(st.tuples(strings, values), max_size=3))
@example([], [])
def test_a_receipt_only_adds(parts: Sequence[tuple[str, ...]], usage: list[tuple[str, str]]) -> None:
    inside = ", ".join(f"{key}:{value}" for key, value in usage)
    answer = written([("", '"usage"', " ", " ", "{" + inside + "}", ""), *parts])
    receipted = add(answer.encode()).decode()
    added = f'{"," if usage else ""}"economizer":{RECEIPT}'
    end = answer.index("{" + inside + "}") + len(inside) + 1
    assert receipted == answer[:end] + added + answer[end:]
    assert pairs(receipted)[0] == ("usage", [*pairs("{" + inside + "}"), ("economizer", [("variant", "int8")])])
