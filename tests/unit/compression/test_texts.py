"""Where text comes from: files of the user's, and what needs no file."""

import json
from pathlib import Path

import pytest
from economizer_compression import overlap, texts
from economizer_compression.errors import CompressionError
from economizer_compression.texts import DOCUMENTS, PROMPTS, chats, documents


def test_the_halves_of_the_built_in_documents_share_no_words_in_a_row() -> None:
    calibration, evaluation = (documents(DOCUMENTS, None, part=part) for part in ("calibration", "evaluation"))
    assert not any(overlap.overlapping(evaluation, overlap.ngrams(calibration)))
    # At about four characters a token enough for the built-in suite's slice and for the default calibration.
    assert sum(map(len, calibration)) > 100_000
    assert sum(map(len, evaluation)) > 100_000


def test_the_built_in_documents_are_the_same_each_time() -> None:
    assert documents(DOCUMENTS, None, part="evaluation") == documents(DOCUMENTS, None, part="evaluation")


def test_the_built_in_prompts_are_halved_by_turns() -> None:
    calibration, evaluation = (chats(PROMPTS, None, part=part) for part in ("calibration", "evaluation"))
    assert len(calibration) == len(evaluation) == 48
    assert not {chat[0]["content"] for chat in calibration} & {chat[0]["content"] for chat in evaluation}
    assert all(len(chat) == 1 and chat[0]["role"] == "user" for chat in calibration + evaluation)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '{"body": "one"}\n\n{"body": "two"}\n'),
        ("rows.json", '[{"body": "one"}, {"body": "two"}]'),
        ("lines.json", '{"body": "one"}\n{"body": "two"}\n'),
        ("rows.csv", "id,body\n1,one\n2,two\n"),
    ],
)
def test_documents_are_rows_of_every_format(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert documents(name, tmp_path, part="evaluation", field="body") == ["one", "two"]
    assert documents(str(tmp_path / name), None, part="evaluation", field="body") == ["one", "two"]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("one\n\ntwo\n")
    assert documents("all.txt", tmp_path, part="evaluation") == ["one\n\ntwo\n"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hello", [{"role": "user", "content": "hello"}]),
        (["first turn", "second turn"], [{"role": "user", "content": "first turn"}]),
        (
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "hi"},
            ],
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        ),
    ],
)
def test_a_chat_ends_with_the_users_turn(tmp_path: Path, value: object, expected: texts.Chat) -> None:
    (tmp_path / "chats.jsonl").write_text(json.dumps({"asked": {"turns": value}}) + "\n")
    assert chats("chats.jsonl", tmp_path, part="evaluation", field="asked.turns") == [expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"other": 1}\n', "row 0: there is no field prompt; it has other"),
        ('{"prompt": 3}\n', "row 0: '3': must be a prompt, a list of prompts or messages"),
        ('{"prompt": [{"role": "system", "content": "x"}]}\n', "row 0: must have a message of the user"),
        ("{prompt}\n", "line 1 is not JSON"),
    ],
)
def test_a_row_that_is_no_chat_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "chats.jsonl").write_text(content)
    with pytest.raises(CompressionError, match=message):
        chats("chats.jsonl", tmp_path, part="evaluation")


def test_a_document_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": ["a list"]}\n')
    with pytest.raises(CompressionError, match=r"field text: \"\['a list'\]\": must be text"):
        documents("rows.jsonl", tmp_path, part="evaluation")


def test_a_missing_file_is_named_with_its_slice_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(CompressionError) as refused:
        documents("wiki.txt", tmp_path, part="evaluation", where="slice encyclopedia")
    expected = f"there is no file {tmp_path}/wiki.txt: --data DIR must name the folder that it is in"
    assert str(refused.value) == f"slice encyclopedia: {expected}"
    with pytest.raises(CompressionError, match=r"slice chat: chats.jsonl: name the folder .* with --data DIR"):
        chats("chats.jsonl", None, part="evaluation", where="slice chat")
