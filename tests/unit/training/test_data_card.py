"""The account closes at every stage, and the card tells it."""

import json
from dataclasses import asdict
from itertools import pairwise

import pytest
from economizer.energy.types import Measurement
from economizer_training.data.account import Account, Stage, Tally
from economizer_training.data.card import Card, Part, Read, Span, Tokenizer, markdown
from hypothesis import given
from hypothesis import strategies as st

STAGES = ("clean", "filter")
went = st.lists(st.tuples(st.sampled_from(["clean", "filter", ""]), st.sampled_from("ab"), st.integers(0, 9)))


def span(energy_uj: int | None) -> Span:
    note = "" if energy_uj is not None else "no counter"
    found = Measurement(seconds=2, energy_uj=energy_uj, idle_uj=(energy_uj or 0) // 4, method="replay", note=note)
    return Span.of("write", found)


def card(*spans: Span) -> Card:
    tally = Tally(STAGES)
    tally.add([10, 9, 9], "", "")
    tally.add([5], "clean", "empty")
    tally.add([8, 7], "filter", "words_min")
    account = tally.account()
    account.add("repeat rare slices", bytes_out=18, repeated=1)
    return Card(
        seed=3,
        tokens=512,
        tokenizer=Tokenizer(folder="./model", sha256="ab"),
        sources=[Read(name="web|x", files=1, examples=3, size_bytes=23)],
        stages=account.stages,
        masked={"email": 2},
        answered=1,
        paraphrased={"kept": 2, "the same words": 1},
        splits={"train": Part(examples={"web|x": 2}, rows=2, tokens=1000, padding=24)},
        meter="replayed",
        spans=spans,
        settings={},
    )


def test_what_leaves_a_stage_enters_the_next() -> None:
    read, clean, filtered, repeated = card().stages
    assert (read.examples_out, read.bytes_out) == (3, 23)
    assert clean == Stage(name="clean", examples_in=3, bytes_in=23, examples_out=2, bytes_out=16, dropped={"empty": 1})
    assert filtered == Stage(
        name="filter", examples_in=2, bytes_in=16, examples_out=1, bytes_out=9, dropped={"words_min": 1}
    )
    assert (repeated.examples_in, repeated.examples_out, repeated.repeated) == (1, 2, 1)


@given(went)
def test_the_account_of_any_run_closes(found: list[tuple[str, str, int]]) -> None:
    tally = Tally(STAGES)
    for stage, rule, size in found:
        tally.add([size] * (1 + (STAGES.index(stage) if stage else 2)), stage, rule if stage else "")
    stages = tally.account().stages
    assert stages[0].examples_in == len(found)
    assert stages[-1].examples_out == sum(not stage for stage, _, _ in found)
    assert all(
        (left.examples_out, left.bytes_out) == (right.examples_in, right.bytes_in) for left, right in pairwise(stages)
    )


def test_a_stage_whose_figures_do_not_add_up_cannot_be() -> None:
    with pytest.raises(ValueError, match="must be 2"):
        Stage(name="x", examples_in=3, bytes_in=0, examples_out=3, bytes_out=0, dropped={"a": 1})


def test_losses_are_told_in_a_line() -> None:
    account = Account(examples=2, size_bytes=2)
    assert account.losses() == "of 2 examples were dropped by no rule"
    account.add("filter", bytes_out=0, dropped={"words_min": 2})
    assert account.losses() == "of 2 examples were dropped by words_min 2"


def test_the_card_for_readers_tells_counts_rules_and_joules() -> None:
    told = markdown(card(span(4_000_000)), "mine")
    assert "| filter | 2 | 1 | 16 | 9 |" in told
    assert "| filter | words_min | 1 | Gopher (Rae et al., arXiv:2112.11446, appendix A.1.1) |" in told
    assert r"| train | web\|x | 2 |" in told
    assert "| write | 2 | 4 | 3 |" in told
    assert "1 of the chats end with an answer of the teacher's." in told
    assert "Paraphrases of the teacher's: kept 2, the same words 1." in told
    assert "In all 4 J, 4 J a thousand tokens." in told
    assert told.endswith("\n")


def test_unknown_joules_are_unknown_and_not_0() -> None:
    told = markdown(card(span(4_000_000), span(None)), "mine")
    assert card(span(4_000_000), span(None)).energy_j is None
    assert "| write | 2 | unknown | unknown |" in told
    assert "Unknown: no counter." in told
    assert "In all" not in told


def test_the_card_for_machines_is_json() -> None:
    assert json.loads(json.dumps(asdict(card(span(1)))))["splits"]["train"]["tokens"] == 1000
