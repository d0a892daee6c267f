from __future__ import annotations

from typing import Any

import pytest
from load.passes import BARE, BURST, PACED, Pass, Took, figures, marked, table
from load.types import Message, Outcome, Planned, Terms

PLAN = [
    Planned(
        number=number,
        due_s=float(number),
        kind="chat",
        model="boiler",
        messages=(Message(role="user", content="What is an economizer?"), Message(role="assistant", content="A part.")),
        output_tokens=11,
    )
    for number in range(4)
]


def outcome(number: int, ttft_s: float, **changes: Any) -> Outcome:
    due_s = float(number)
    values: dict[str, Any] = {
        "number": number,
        "kind": "chat",
        "model": "boiler",
        "tenant": "default",
        "terms": Terms(),
        "due_s": due_s,
        "sent_s": due_s,
        "first_s": due_s + ttft_s,
        "ended_s": due_s + ttft_s + 1.0,
        "status": 200,
        "output_tokens": 11,
    }
    return Outcome(**(values | changes))


def one(server: str, number: int, ttft_s: float, *, phase: str = PACED, own_uj: int | None = 40_000) -> Pass:
    """Four requests of 11 tokens, a tenth of a second a token, for 8 J in the engines."""
    took = Took(seconds=5, own_uj=own_uj, idle_uj=10_000, own_cpu_s=0.02, engines_uj=8_000_000, method="cpu-time-model")
    outcomes = [outcome(number, ttft_s) for number in range(4)]
    return Pass(round=number, server=server, phase=phase, planned=PLAN, outcomes=outcomes, took=took)


def test_a_servers_figures_are_medians_over_rounds_and_over_the_bare_engines_of_the_same_round() -> None:
    passes = [one(BARE, 1, 0.1), one("nginx", 1, 0.2), one(BARE, 2, 0.2), one("nginx", 2, 0.3), one("nginx", 3, 0.9)]
    found: Any = figures(passes, [BARE, "nginx"], {"nginx": 1.5})
    nginx = found["nginx"]
    assert nginx["ttft_ms_p50"] == pytest.approx(300)
    assert nginx["ttft_ms_p50_rounds"] == pytest.approx([200, 300, 900])
    assert nginx["ttft_ms_p50_over_bare"] == pytest.approx(1.75)
    assert nginx["tpot_ms_p50"] == pytest.approx(100)
    assert (nginx["engines_j"], nginx["own_j"], nginx["added_j"], nginx["both_j"]) == (2, 0.01, 0.0075, 2.01)
    assert (nginx["own_cpu_ms"], nginx["idle_mw"]) == (5, 1.5)
    assert nginx["answered_paced"] == "12/12 (12)"


def test_a_burst_tells_throughput_from_its_first_request_to_its_last_end() -> None:
    found: Any = figures([one(BARE, 1, 0.5, phase=BURST)], [BARE], {})
    assert found[BARE]["requests_per_s"] == pytest.approx(4 / 4.5, abs=1e-4)
    assert found[BARE]["tokens_per_s"] == pytest.approx(44 / 4.5, abs=1e-4)


def test_what_is_not_known_is_null_and_a_dash_and_never_nothing() -> None:
    passes = [one("nginx", 1, 0.1, own_uj=None)]
    found: Any = figures(passes, ["nginx"], {})
    assert (found["nginx"]["own_j"], found["nginx"]["both_j"], found["nginx"]["idle_mw"]) == (None, None, None)
    lines = {line[:32].strip(): line[32:].split() for line in table(passes, ["nginx"], {})}
    assert lines["J/request, server"] == ["-"]
    assert lines["J/request, engines"] == ["2.000", "(2.000-2.000)"]


def test_answers_of_another_length_and_requests_without_an_answer_are_counted() -> None:
    passed = one("litellm", 1, 0.1)
    outcomes = [outcome(0, 0.1), outcome(1, 0.1, output_tokens=5), outcome(2, 0.1, error="http_500", status=500)]
    short = Pass(round=1, server="litellm", phase=PACED, planned=PLAN, outcomes=outcomes, took=passed.took)
    found: Any = figures([short], ["litellm"], {})
    assert found["litellm"]["answered_paced"] == "2/3 (1)"
    assert found["litellm"]["engines_j"] == 4


def test_a_mark_stands_before_the_first_message_alone() -> None:
    (first, *_) = marked(PLAN, "000042")
    assert [message.content for message in first.messages] == ["[000042] What is an economizer?", "A part."]
    assert first.due_s == PLAN[0].due_s
    assert PLAN[0].messages[0].content == "What is an economizer?"
