"""Suites: what is read, and how every mistake in one is named."""

from pathlib import Path
from typing import Any

import pytest
from economizer_compression.errors import CompressionError
from economizer_compression.suite import (
    SHIPPED,
    AnswerSlice,
    AnswerSource,
    ChoiceSlice,
    TextSlice,
    TextSource,
    load_suite,
    parse_suite,
)

CONTENT: dict[str, Any] = {
    "name": "mine",
    "calibration": [{"text": "c4.jsonl", "field": "text"}, {"answers": "builtin:prompts"}],
    "evaluation": [
        {"slice": "encyclopedia", "text": "wiki.txt", "tokens": 1024, "window": 256},
        {"slice": "chat", "answers": "chats.jsonl", "field": "turns", "items": 8, "answer_tokens": 32},
        {"slice": "knowledge", "choices": {"doc_to_text": "{{question}}"}, "items": 20},
    ],
}


def refused(content: Any) -> str:
    with pytest.raises(CompressionError) as error:
        parse_suite(content, "suite.yaml")
    return str(error.value)


def test_a_suite_says_what_calibrates_and_what_is_scored() -> None:
    suite = parse_suite(CONTENT, "suite.yaml")
    assert suite.name == "mine"
    assert suite.calibration == (TextSource(text="c4.jsonl", field="text"), AnswerSource(answers="builtin:prompts"))
    assert suite.evaluation == (
        TextSlice(slice="encyclopedia", text="wiki.txt", tokens=1024, window=256),
        AnswerSlice(slice="chat", answers="chats.jsonl", field="turns", items=8, answer_tokens=32),
        ChoiceSlice(slice="knowledge", choices={"doc_to_text": "{{question}}"}, items=20),
    )


def test_a_suite_of_other_content_has_another_digest() -> None:
    same = parse_suite(dict(reversed(CONTENT.items())), "elsewhere.yaml")
    other = parse_suite(CONTENT | {"name": "yours"}, "suite.yaml")
    assert parse_suite(CONTENT, "suite.yaml").sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_the_suites_that_come_with_the_package_are_read_by_name(path: Path) -> None:
    suite = load_suite(path.stem)
    assert suite == load_suite(str(path))
    assert (suite.name, bool(suite.calibration)) == (path.stem, True)


def test_the_builtin_suite_needs_no_file() -> None:
    suite = load_suite("builtin")
    sources = [*suite.calibration, *suite.evaluation]
    named = [getattr(each, "text", None) or getattr(each, "answers", None) for each in sources]
    assert all(str(name).startswith("builtin:") for name in named)


def test_every_mistake_is_named_with_its_place_value_and_rule() -> None:
    content = {
        "calibration": [{"text": "a.txt", "feild": "text"}],
        "evaluation": [
            {"slice": "a", "text": "b.txt", "tokens": 100, "window": 512},
            {"slice": "b", "answers": "c.jsonl", "items": 0},
            {"slice": "c"},
            {"choices": "arc_easy"},
        ],
        "sedd": 3,
    }
    assert refused(content).removeprefix("suite.yaml: ").split("; ") == [
        *("sedd: is not a known key here", "there are calibration, evaluation, name"),
        "calibration[0].feild: 'text': is not a known key here",
        f"evaluation[0]: {content['evaluation'][0]!r}: tokens is 100: must be at least window",  # type: ignore[index]
        f"evaluation[1]: {content['evaluation'][1]!r}: items is 0: must be 1 or more",  # type: ignore[index]
        "evaluation[2]: {'slice': 'c'}: must have one of the keys text, answers, choices",
        "evaluation[3].slice: {'choices': 'arc_easy'}: Field required",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": []}, "evaluation is []: must name at least one slice"),
        ({"evaluation": None}, "evaluation: None: must be a list"),
        ({"evaluation": [CONTENT["evaluation"][0]] * 2}, "must have slices of different names"),
        ({"evaluation": [{"slice": "a", "text": "b", "answers": "c"}]}, "must have one of the keys"),
    ],
)
def test_a_suite_that_scores_nothing_or_confuses_is_refused(change: dict[str, Any], message: str) -> None:
    assert message in refused(CONTENT | change)


def test_what_is_no_suite_at_all_is_refused(tmp_path: Path) -> None:
    assert "must be a mapping" in refused(["a", "list"])
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(CompressionError, match=r"broken.yaml is not YAML"):
        load_suite(str(tmp_path / "broken.yaml"))
    with pytest.raises(CompressionError, match=r"there is no suite nothing: give a YAML file or one of builtin"):
        load_suite("nothing")
