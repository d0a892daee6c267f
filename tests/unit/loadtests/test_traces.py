from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from load.arrivals import Row, TraceError, Window
from load.traces import read, read_lengths

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,0
2023-11-16 18:16:51.6805900,91,16
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
45,GPT-4,417,276,693,Conversation log
118,ChatGPT,0,0,0,Conversation log
"""


def written(folder: Path, content: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def lengths(rows: tuple[Row, ...]) -> list[tuple[int, int]]:
    return [(row.prompt_tokens, row.output_tokens) for row in rows]


def test_an_azure_trace_is_timed_from_its_first_request_and_its_rows_without_an_answer_are_counted(
    tmp_path: Path,
) -> None:
    trace = read(written(tmp_path, AZURE))
    assert (trace.format, trace.failed, trace.share) == ("Azure LLM inference", 1, 1.0)
    assert lengths(trace.rows) == [(374, 44), (396, 109), (91, 16)]
    assert [row.at_s for row in trace.rows] == pytest.approx([0.0, 4.314579, 65.0], abs=1e-5)


def test_burstgpt_times_are_spread_over_the_whole_seconds_that_they_are_cut_to(tmp_path: Path) -> None:
    trace = read(written(tmp_path, BURSTGPT), seed=1)
    assert (trace.format, trace.failed) == ("BurstGPT", 1)
    assert lengths(trace.rows) == [(472, 18), (1087, 230), (417, 276)]
    first, second, third = (row.at_s for row in trace.rows)
    assert 0 <= first < 1
    assert 40 <= second < third < 41


def test_mooncake_requests_of_a_tick_keep_their_order_and_are_spread_over_it_by_the_seed(tmp_path: Path) -> None:
    rows = [
        {"timestamp": tick * 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 10 * tick + place]}
        for tick in range(3)
        for place in range(4)
    ]
    path = written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "trace.jsonl")
    trace = read(path, seed=3)
    assert trace.format == "Mooncake"
    assert [row.blocks[1] for row in trace.rows] == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert [int(row.at_s // 3) for row in trace.rows] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({row.at_s for row in trace.rows}) == 12
    assert read(path, seed=3) == trace
    assert read(path, seed=4) != trace


def test_our_own_rows_may_name_a_tenant_and_a_session(tmp_path: Path) -> None:
    rows = [
        {"at_s": 2.5, "prompt_tokens": 30, "output_tokens": 8, "tenant": "acme", "session": "s1"},
        {"at_s": 1.0, "prompt_tokens": 40, "output_tokens": 9},
    ]
    trace = read(written(tmp_path, "\n".join(json.dumps(row) for row in rows), "own.jsonl"))
    assert trace.rows == (
        Row(at_s=1.0, prompt_tokens=40, output_tokens=9),
        Row(at_s=2.5, prompt_tokens=30, output_tokens=8, tenant="acme", session="s1"),
    )


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("date,price\n1,2\n", "t.csv", "begins with 'date,price': must be a CSV header with TIMESTAMP"),
        ('{"text": "hello"}\n', "t.jsonl", "has text in its first line: must have timestamp, input_length"),
        (AZURE.replace("374", "many"), "t.csv", "line 2: ContextTokens is 'many': must be a number"),
        ('{"at_s": 1, "prompt_tokens": 2, "output_tokens": 3, "user": "x"}\n', "t.jsonl", "line 1: .*user"),
        ("num_prefill_tokens,num_decode_tokens\n5,6\n", "t.csv", "has lengths and no times"),
        ("t_s,rate_rps\n0,1\n600,2\n", "t.csv", "is a rate curve and says nothing of lengths: .*--lengths"),
        ("\x00\udcff", "t.csv", "is not text"),
    ],
)
def test_what_is_no_trace_is_refused_with_what_would_be_right(
    tmp_path: Path, content: str, name: str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(TraceError, match=message):
        read(path)


def own(folder: Path, *at_s: float, sessions: int = 0) -> Path:
    rows = [
        {"at_s": at, "prompt_tokens": 40, "output_tokens": 4}
        | ({"session": f"s{place % sessions}"} if sessions else {})
        for place, at in enumerate(at_s)
    ]
    return written(folder, "".join(json.dumps(row) + "\n" for row in rows), "own.jsonl")


def test_a_window_is_timed_from_its_own_start_and_has_no_more_than_was_asked_for(tmp_path: Path) -> None:
    path = own(tmp_path, 0, 10, 20, 30, 40)
    assert [row.at_s for row in read(path, window=Window(start_s=10, seconds=25)).rows] == [0, 10, 20]
    assert [row.at_s for row in read(path, window=Window(start_s=10, requests_max=2)).rows] == [0, 10]
    with pytest.raises(TraceError, match="no request from 50 s to inf s: the trace ends at 40 s"):
        read(path, window=Window(start_s=50))


def test_thinning_keeps_about_the_share_that_was_asked_for_and_whole_sessions(tmp_path: Path) -> None:
    path = own(tmp_path, *range(3000), sessions=300)
    trace = read(path, window=Window(seconds=3000, requests_per_s=0.3), seed=1)
    assert trace.share == pytest.approx(0.3)
    kept = Counter(row.session for row in trace.rows)
    assert set(kept.values()) == {10}
    assert 60 <= len(kept) <= 120
    with pytest.raises(TraceError, match="requests_per_s is 2: the trace has 1 there"):
        read(path, window=Window(seconds=3000, requests_per_s=2))


def rate_curve(folder: Path, cv: float = 1.0) -> tuple[Path, Path]:
    curve = f"t_s,rate_rps,rate_weighted_cv\n0,1,{cv}\n600,3,{cv}\n1200,0,{cv}\n1800,2,{cv}\n"
    written(folder, "client,mean_rate_rps\n7,3.0\n9,1.0\n", "day_clients.csv")
    return written(folder, curve, "day_rate_10min.csv"), own(folder, 1, 2, 3)


def test_arrivals_follow_the_rate_curve_and_tenants_its_table_of_clients(tmp_path: Path) -> None:
    curve, table = rate_curve(tmp_path)
    trace = read(curve, lengths=table, seed=2)
    assert (trace.format, trace.share) == ("ServeGen", None)
    per_piece = Counter(int(row.at_s // 600) for row in trace.rows)
    assert per_piece[0] == pytest.approx(600, abs=4 * 600**0.5)
    assert per_piece[1] == pytest.approx(1800, abs=4 * 1800**0.5)
    assert per_piece[2] == 0
    assert per_piece[3] == pytest.approx(1200, abs=4 * 1200**0.5)
    tenants = Counter(row.tenant for row in trace.rows)
    assert tenants["client-7"] / tenants["client-9"] == pytest.approx(3, rel=0.2)
    assert read(curve, lengths=table, seed=2) == trace
    half = read(curve, lengths=table, window=Window(requests_per_s=0.75), seed=2)
    assert len(half.rows) == pytest.approx(1800, abs=4 * 1800**0.5)


@pytest.mark.parametrize(("cv", "bursty", "expected"), [(1.0, True, 1.0), (2.5, True, 2.5), (2.5, False, 1.0)])
def test_the_time_between_arrivals_varies_as_the_table_says(
    tmp_path: Path, cv: float, bursty: bool, expected: float
) -> None:
    curve, table = rate_curve(tmp_path, cv)
    rows = read(curve, lengths=table, window=Window(start_s=600, seconds=600, requests_per_s=10), bursty=bursty).rows
    gaps = [after.at_s - before.at_s for before, after in pairwise(rows)]
    average = mean(gaps)
    assert (mean((gap - average) ** 2 for gap in gaps) ** 0.5) / average == pytest.approx(expected, rel=0.1)


def test_a_curve_of_more_requests_than_anybody_could_send_is_refused(tmp_path: Path) -> None:
    curve, table = rate_curve(tmp_path)
    with pytest.raises(TraceError, match=r"2\.4e\+07 requests are in that window"):
        read(curve, lengths=table, window=Window(requests_per_s=10_000))


def test_lengths_are_read_from_a_trace_or_from_a_table_of_them(tmp_path: Path) -> None:
    assert read_lengths(written(tmp_path, AZURE)) == [(374, 44), (396, 109), (91, 16)]
    table = written(tmp_path, "num_prefill_tokens,num_decode_tokens,pd_ratio\n3772,54,69.8\n0,3,0\n", "l.csv")
    assert read_lengths(table) == [(3772, 54)]
