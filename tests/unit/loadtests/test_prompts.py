from __future__ import annotations

import json
from pathlib import Path

import pytest
from load.prompts import MESSAGE_TOKENS, TEMPLATE_TOKENS, Prompts, Texts, read_texts
from load.tokens import Rule, counter

RULE = Rule()


@pytest.fixture(scope="module")
def texts() -> Texts:
    return read_texts(None)


@pytest.fixture(scope="module")
def prompts(texts: Texts) -> Prompts:
    return Prompts(texts, RULE, seed=7)


@pytest.mark.parametrize("tokens", [40, 60, 120, 500, 1500, 8000, 120_000])
def test_a_prompt_is_as_long_as_was_asked_for_and_ends_with_a_question(
    prompts: Prompts, texts: Texts, tokens: int
) -> None:
    (message,) = prompts.chat(tokens, key=3)
    assert RULE.count(message.content) + TEMPLATE_TOKENS == pytest.approx(tokens, abs=max(25, 0.01 * tokens))
    assert any(message.content.endswith(question) for question in texts.questions) or tokens < 45


def test_prompts_come_of_the_seed_and_the_key_alone(prompts: Prompts, texts: Texts) -> None:
    assert Prompts(texts, RULE, seed=7).chat(300, key=1) == prompts.chat(300, key=1)
    assert len({prompts.chat(300, key=key) for key in range(50)}) == 50
    assert Prompts(texts, RULE, seed=8).chat(300, key=1) != prompts.chat(300, key=1)


def test_prompts_share_their_beginning_as_far_as_they_share_blocks(prompts: Prompts) -> None:
    def text(blocks: list[int], key: int) -> str:
        return prompts.shared(blocks, 200, 800, key)[0].content

    first, same, other = text([1, 2, 3, 4], 0), text([1, 2, 30, 40], 1), text([9, 2, 3, 4], 2)

    def common(a: str, b: str) -> int:
        return RULE.count(a[: next(place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)])

    assert 400 <= common(first, same) <= 420
    assert common(first, other) < 20
    assert RULE.count(first) + TEMPLATE_TOKENS == pytest.approx(800, abs=20)


def test_a_conversation_goes_on_from_what_was_said_until_its_length_no_longer_holds_it(prompts: Prompts) -> None:
    first = prompts.turn((), 100, key=0)
    said = prompts.answered(first, 40, key=0)
    assert [message.role for message in said] == ["user", "assistant"]
    second = prompts.turn(said, 260, key=1)
    assert second[:2] == said
    assert prompts.tokens(second) - MESSAGE_TOKENS + TEMPLATE_TOKENS == pytest.approx(260, abs=25)
    anew = prompts.turn(prompts.answered(second, 40, key=1), 120, key=2)
    assert len(anew) == 1


def test_a_folder_gives_questions_with_their_choices_and_documents(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    rows = [
        {"question": "Which is a metal?", "choices": ["iron", "wood"]},
        {"turns": ["Write a poem.", "Now a shorter one."]},
        {"question": {"stem": "not text"}},
        {"timestamp": 5},
    ]
    (tmp_path / "sets" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "A document of a crawl."}) + "\n")
    (tmp_path / "c.txt").write_text("A whole book.")
    (tmp_path / "d.jsonl").write_text("no JSON\n")
    texts = read_texts(tmp_path)
    assert texts.questions == ("Which is a metal?\nA. iron\nB. wood", "Write a poem.")
    assert texts.documents == ("A whole book.", "A document of a crawl.")


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold JSONL files whose rows have one of question, prompt"):
        read_texts(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        read_texts(tmp_path / "nowhere")


def test_the_rule_counts_words_digits_and_signs() -> None:
    assert RULE.count("What is an economizer?") == 6  # "economizer" is two tokens, the sign is one
    assert RULE.count("1234 + x_y") == 4 + 1 + 1 + 1 + 1
    assert RULE.cut("one two three four", 2) == "one two"
    assert RULE.cut("one two", 5) == "one two"
    assert RULE.cut("one two", 0) == ""


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a tokenizer\.json, or a folder with one"):
        counter(tmp_path)
    assert counter(None).how.startswith("a rule")
