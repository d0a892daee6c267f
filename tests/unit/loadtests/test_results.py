from __future__ import annotations

from pathlib import Path

import pytest
from load.results import JSONL, PARQUET, Header, Writer, header, new_folder, read, write_parquet
from load.types import Message, Outcome, Planned, Terms

PLAN = [
    Planned(
        number=n, due_s=n, kind="chat", model="m", messages=(Message(role="user", content="a secret"),), output_tokens=4
    )
    for n in range(3)
]
OUTCOMES = [
    Outcome(
        number=0,
        kind="chat",
        model="m",
        tenant="acme",
        terms=Terms(quality_min=0.9, policy="green"),
        due_s=0.0,
        sent_s=0.001,
        ended_s=0.5,
        first_s=0.2,
        status=200,
        output_tokens=4,
        energy_j=1.25,
        method="rapl",
    ),
    Outcome(
        number=1,
        kind="chat",
        model="m",
        tenant="acme",
        terms=Terms(),
        due_s=1.0,
        sent_s=1.0,
        ended_s=1.5,
        error="timeout",
    ),
]


@pytest.fixture
def run() -> Header:
    return header("replay", PLAN, settings={"speed": 10.0}, facts={"trace": "Azure"})


def test_a_header_says_what_ran_where_and_of_which_commit(run: Header) -> None:
    assert (run.tool, run.requests, run.settings, run.facts) == ("replay", 3, {"speed": 10.0}, {"trace": "Azure"})
    assert "cores" in run.machine
    assert run.began.endswith("+00:00")
    same, other = (header("x", plan, settings={}, facts={}).plan_sha256 for plan in (PLAN, PLAN[:2]))
    assert run.plan_sha256 == same != other


def test_outcomes_are_read_back_as_they_were_written(tmp_path: Path, run: Header) -> None:
    folder = new_folder(tmp_path / "run")
    with Writer(folder / JSONL, run) as writer:
        for outcome in OUTCOMES:
            writer.write(outcome)
    write_parquet(folder / PARQUET, run, OUTCOMES)
    for path in (folder, folder / JSONL, folder / PARQUET):
        found = read(path)
        assert (found.header, list(found.outcomes), found.torn) == (run, OUTCOMES, False)
    (folder / JSONL).unlink()
    assert list(read(folder).outcomes) == OUTCOMES


def test_each_outcome_is_on_disk_when_it_was_written_and_a_torn_line_is_told(tmp_path: Path, run: Header) -> None:
    path = tmp_path / JSONL
    with Writer(path, run) as writer:
        writer.write(OUTCOMES[0])
        assert list(read(path).outcomes) == OUTCOMES[:1]
    with path.open("ab") as file:
        file.write(b'{"number": 1, "kin')
    found = read(path)
    assert (list(found.outcomes), found.torn) == (OUTCOMES[:1], True)


def test_a_run_without_an_outcome_is_read(tmp_path: Path, run: Header) -> None:
    with Writer(tmp_path / JSONL, run):
        pass
    write_parquet(tmp_path / PARQUET, run, [])
    assert read(tmp_path / JSONL).outcomes == read(tmp_path / PARQUET).outcomes == ()


def test_results_are_never_overwritten(tmp_path: Path, run: Header) -> None:
    with pytest.raises(FileExistsError, match="is there already"):
        new_folder(tmp_path)
    with Writer(tmp_path / JSONL, run), pytest.raises(FileExistsError):
        Writer(tmp_path / JSONL, run)
    write_parquet(tmp_path / PARQUET, run, OUTCOMES)
    with pytest.raises(FileExistsError):
        write_parquet(tmp_path / PARQUET, run, OUTCOMES)


def test_neither_form_holds_a_prompt(tmp_path: Path, run: Header) -> None:
    with Writer(tmp_path / JSONL, run) as writer:
        writer.write(OUTCOMES[0])
    write_parquet(tmp_path / PARQUET, run, OUTCOMES)
    assert all(b"a secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / JSONL
    path.write_text('{"at_s": 1}\n')
    with pytest.raises(ValueError, match="line 1 is not a run's header"):
        read(path)
