"""What is put otherwise of a text, and which answers of the teacher's are no paraphrases."""

import pytest
from economizer_training.data.examples import Message
from economizer_training.data.paraphrasing import KEPT, beginning, last_asked, verdict
from hypothesis import given
from hypothesis import strategies as st

paragraphs = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join), max_size=6)


def words(text: str) -> int:
    return len(text.split())


def test_of_a_document_the_whole_paragraphs_that_fit_are_taken_from_its_beginning() -> None:
    text = "one two\n\nthree four\n\nfive six seven"
    assert beginning(text, 5, words) == "one two\n\nthree four"
    assert beginning(text, 7, words) == text


def test_a_first_paragraph_that_is_too_long_leaves_nothing_to_take() -> None:
    assert beginning("one two three\n\nfour", 2, words) == ""


@given(paragraphs, st.integers(1, 30))
def test_what_is_taken_fits_begins_the_text_and_ends_a_paragraph(parts: list[str], most: int) -> None:
    text = "\n\n".join(parts)
    taken = beginning(text, most, words)
    assert words(taken) <= most
    assert taken in ["\n\n".join(parts[:count]) for count in range(len(parts) + 1)]


@pytest.mark.parametrize(
    ("made", "finished", "told"),
    [
        ("Of water is made what one boils.", True, KEPT),
        ("  \n", True, "empty"),
        ("One boils water, which", False, "unfinished"),
        ("what is BOILED is water", True, "the same words"),
        ("What is boiled is water. " * 3, True, "much longer"),
    ],
)
def test_an_answer_that_is_no_paraphrase_is_refused_by_name(made: str, finished: bool, told: str) -> None:
    assert verdict("What is boiled is water.", made, finished=finished) == told


def test_of_a_chat_it_is_the_last_turn_of_the_user_that_is_put_otherwise() -> None:
    roles = ["system", "user", "assistant", "user", "assistant"]
    chat: list[Message] = [{"role": role, "content": "x"} for role in roles]
    assert last_asked(chat) == 3
    assert last_asked(chat[:1]) is None
