"""Files to examples, and what is said of files that are none: each error names the file and the place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
from economizer_training.data.config import Source, Template
from economizer_training.data.examples import Example
from economizer_training.data.readers import read, strings, urls
from economizer_training.errors import TrainingError


def source(**settings: Any) -> Source:
    return Source(name="web", files=("ignored",), **settings)


def texts(path: Path, **settings: Any) -> list[str]:
    return [example.text for example in read(source(**settings), 0, str(path))]


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_file_is_one_document_or_its_lines_or_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n \nthree\n")
    assert texts(path) == ["one\ntwo\n\n \nthree\n"]
    assert texts(path, split="line") == ["one\n", "two\n", "three\n"]
    assert texts(path, split="paragraph") == ["one\ntwo\n", "three\n"]


def test_ids_order_examples_by_file_and_row() -> None:
    with fsspec.open("memory://ids.txt", "w") as file:
        file.write("b\na\n")
    found = list(read(source(split="line"), 7, "memory://ids.txt"))
    assert [example.id for example in found] == ["web:00007:000000000", "web:00007:000000001"]


def test_json_lines_are_read_by_field_compressed_or_not_here_or_behind_a_url(tmp_path: Path) -> None:
    rows = [{"doc": {"text": "one"}}, {"doc": {"text": None}}, {"doc": {"text": "two"}}]
    lines(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    assert texts(tmp_path / "a.jsonl", text="doc.text") == ["one", "", "two"]
    assert texts(tmp_path / "a.jsonl.gz", text="doc.text") == ["one", "", "two"]
    with fsspec.open("memory://deep/a.jsonl", "wb") as file:
        file.write((tmp_path / "a.jsonl").read_bytes())
    assert [e.text for e in read(source(text="doc.text"), 0, "memory://deep/a.jsonl")] == ["one", "", "two"]


def test_chats_are_openai_messages_of_text_or_of_parts_of_text(tmp_path: Path) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "Hi"},
    ]
    path = lines(tmp_path / "a.jsonl", [{"messages": messages, "topic": "greeting"}])
    (found,) = read(source(messages="messages", slice="topic"), 0, str(path))
    assert found.slice == "web/greeting"
    assert found.chat() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello\nyou"},
        {"role": "assistant", "content": "Hi"},
    ]
    assert Example.from_json(found.to_json()) == found


def test_templates_take_turns_and_braces_in_a_field_are_text(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"q": "What is {x}?", "a": [{"text": "{}", "n": 3}]}])
    templates = (
        Template(user="{q}", assistant="{a.0.text}"),
        Template(system="Sums", user="Q: {q} {{sic}}", assistant="{a.0.n}"),
    )
    (found,) = read(source(templates=templates), 0, str(path))
    first, second = found.chat(templates, 2), found.chat(templates, 1)
    assert first == [{"role": "user", "content": "What is {x}?"}, {"role": "assistant", "content": "{}"}]
    assert second == [
        {"role": "system", "content": "Sums"},
        {"role": "user", "content": "Q: What is {x}? {sic}"},
        {"role": "assistant", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: is empty"),
        ("a.txt", b" \n\n", "a.txt: is empty"),
        ("a.jsonl", b"", "a.jsonl: is empty"),
        ("a.parquet", b"", "a.parquet: is empty"),
        ("a.txt", b"fine\nthen \x00\x01", "a.txt line 2: is binary: it has a zero at byte 10"),
        ("a.txt", b"\xff\xfea\x00", "a.txt: is UTF-16 by its first bytes"),
        ("a.txt", b"caf\xc3\xa9\nna\xefve\n", "a.txt line 2: byte 0xef at 8 is not utf-8; the 1 lines before it are"),
        ("a.txt", b"na\xefve\n", "a.txt line 1: byte 0xef at 2 is not utf-8; set `encoding`"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl line 2: is not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl line 1: '[1]': must be a JSON object"),
        ("a.jsonl", b'{"texts": "a"}\n', "a.jsonl line 1: there is no field text; it has texts"),
        ("a.jsonl", b'{"text": ["a"]}\n', "a.jsonl line 1: field text: \"['a']\": must be text"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: cannot be read"),
        ("a.txt.gz", gzip.compress(b"text " * 1000)[:40], "a.txt.gz: cannot be read"),
        ("a.dat", b"text", "a.dat: its name does not say its format"),
    ],
)
def test_a_file_that_is_no_text_is_named_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError) as refused:
        texts(tmp_path / name)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'[]': must be a list of messages with role and content"),
        ("Hello", "'Hello': must be a list of messages with role and content"),
        ([{"role": "robot", "content": "x"}], "message 0: \"{'role': 'robot', 'content': 'x'}\": must have a role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "message 0: has content that is not text",
        ),
    ],
)
def test_what_is_no_chat_is_named_with_the_line(tmp_path: Path, messages: object, message: str) -> None:
    path = lines(tmp_path / "a.jsonl", [{"messages": messages}])
    with pytest.raises(TrainingError) as refused:
        texts(path, messages="messages")
    assert f"a.jsonl line 1: {message}" in str(refused.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    assert texts(tmp_path / "a.txt") == ["text"]


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    assert texts(tmp_path / "a.txt", encoding="latin-1") == ["naïve"]
    with pytest.raises(TrainingError, match="there is no encoding klingon"):
        texts(tmp_path / "a.txt", encoding="klingon")


def test_patterns_name_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text("text")
    found = urls(("*.txt", "c.md", "c.md", "builtin:documents"), tmp_path, "files")
    assert [Path(url).name for url in found] == ["a.txt", "b.txt", "c.md", "builtin:documents"]


@pytest.mark.parametrize(
    ("pattern", "data", "message"),
    [
        ("absent.txt", "here", "files: there is no file"),
        ("*.zip", "here", "files: there is no file"),
        ("a.txt", None, "name the folder that it is in with --data"),
        ("nowhere://a.txt", None, "files: nowhere://a.txt: Protocol not known"),
    ],
)
def test_a_pattern_that_names_no_file_is_refused(tmp_path: Path, pattern: str, data: str | None, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        urls((pattern,), None if data is None else tmp_path, "files")


def test_every_string_of_an_evaluation_file_counts(tmp_path: Path) -> None:
    row = {"question": "Why?", "choices": ["a", {"text": "b"}], "answer": 3}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    lines(tmp_path / "a.jsonl", [row])
    (tmp_path / "a.csv").write_text("text,category\nWhy?,a\n")
    assert list(strings(str(tmp_path / "a.json"))) == ["Why?", "a", "b"]
    assert list(strings(str(tmp_path / "a.jsonl"))) == ["Why?", "a", "b"]
    assert list(strings(str(tmp_path / "a.csv"))) == ["text,category\nWhy?,a\n"]


def test_the_built_in_documents_are_learnt_from_and_scored_on_by_halves() -> None:
    learnt = {example.text for example in read(source(), 0, "builtin:documents")}
    scored = set(strings("builtin:documents"))
    assert len(learnt) > 10
    assert len(scored) > 10
    assert not learnt & scored


def test_the_built_in_prompts_are_asked_and_scored_on_by_halves() -> None:
    asked = {example.text for example in read(source(messages="messages"), 0, "builtin:prompts")}
    scored = set(strings("builtin:prompts"))
    assert len(asked) > 10
    assert len(scored) > 10
    assert not asked & scored


def test_a_template_without_an_answer_ends_with_the_users_turn(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"q": "Why?"}])
    templates = (Template(user="{q}"),)
    (found,) = read(source(templates=templates), 0, str(path))
    assert found.chat(templates) == [{"role": "user", "content": "Why?"}]


def test_half_a_character_that_json_escapes_harms_neither_slice_nor_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b", "kind": "\\ud800"}\n')
    (found,) = read(source(slice="kind"), 0, str(tmp_path / "a.jsonl"))
    assert found.slice == "web/?"
    assert Example.from_json(found.to_json()) == found
    assert found.size_bytes == 5
