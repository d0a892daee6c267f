"""What is private is masked, and what only looks like it is left."""

import pytest
from economizer_training.data.private import KINDS, is_card, mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ada.lovelace+x@mail.example.co.uk, please", "write to <EMAIL>, please"),
        ("user@localhost and @handle and a@b", "user@localhost and @handle and a@b"),
        ("call +44 20 7946 0958 now", "call <PHONE> now"),
        ("call (202) 555-0143, or 202-555-0143", "call <PHONE>, or <PHONE>"),
        ("call 910.538.0115.", "call <PHONE>."),
        ("on 2026-11-28, 1,600,000 of 2,000,000", "on 2026-11-28, 1,600,000 of 2,000,000"),
        ("version 10.2.3 or 555-0143", "version 10.2.3 or 555-0143"),
        ("from 8.8.8.8 to 2001:4860:4860::8888", "from <IP> to <IP>"),
        ("at 127.0.0.1, 192.168.1.1, ::1 and 1.2.3.999", "at 127.0.0.1, 192.168.1.1, ::1 and 1.2.3.999"),
        ("it was 12:30:45 in std::vector", "it was 12:30:45 in std::vector"),
        ("card 4111 1111 1111 1111, thanks", "card <CARD>, thanks"),
        ("card 4111-1111-1111-1111 or 378282246310005", "card <CARD> or <CARD>"),
        ("order 4111 1111 1111 1112", "order 4111 1111 1111 1112"),
        # A sum whose digits happen to end in their check digit.
        ("<<2000000-400000=1600000>> 14,000-3,920-1,000", "<<2000000-400000=1600000>> 14,000-3,920-1,000"),
    ],
)
def test_what_is_private_is_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask(text, KINDS)[0] == masked


def test_only_what_was_asked_for_is_masked_and_counted() -> None:
    text = "a@example.com, b@example.com, 8.8.8.8"
    assert mask(text, ["email"]) == ("<EMAIL>, <EMAIL>, 8.8.8.8", {"email": 2})
    assert mask(text, []) == (text, {})


def test_a_card_is_not_taken_for_a_phone_number() -> None:
    assert mask("pay +4 or 4111 1111 1111 1111", ["phone", "card"]) == ("pay +4 or <CARD>", {"card": 1})


@pytest.mark.parametrize(
    "digits", ["4111111111111111", "378282246310005", "5555 5555 5555 4444", "6011-1111-1111-1117"]
)
def test_the_card_companies_own_test_numbers_have_right_check_digits(digits: str) -> None:
    assert is_card(digits)


@pytest.mark.parametrize("digits", ["4111111111111112", "411111111111", "0000000000000000", "41111111111111111111"])
def test_other_numbers_are_no_cards(digits: str) -> None:
    assert not is_card(digits)
