"""Batches that wait on disk come out as they went in, whatever happened to the process in between."""

import subprocess
import sys
import time
from pathlib import Path

import ledger_batches
import pytest
from economizer.ledger.spool import Replayed, Spool, SpoolFull
from economizer.ledger.store import LedgerUnreachable
from economizer.ledger.types import Batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_batches import booking, stream

SEED = 3
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def spool(folder: Path, bytes_max: int = 10**9) -> Spool:
    return Spool(folder, bytes_max=bytes_max)


def replayed(folder: Path) -> list[Batch]:
    """What a new process gets out."""
    batches: list[Batch] = []
    found = spool(folder)
    assert found.replay(batches.append) == Replayed(written=len(batches))
    assert found.pending() == 0
    return batches


def never(batch: Batch) -> None:
    raise AssertionError(f"{batch} was written")


_TEXTS = st.text(st.characters(exclude_categories=()))  # halves of surrogate pairs, too
_INTEGERS = st.integers() | st.none()
_FLOATS = st.floats(allow_nan=False) | st.none()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(error=_TEXTS, tokens=_INTEGERS, energy_uj=_INTEGERS, ttft_s=_FLOATS, learnt=st.lists(st.floats(allow_nan=False)))
def test_a_batch_comes_out_exactly_as_it_went_in(
    tmp_path: Path,
    error: str,
    tokens: int | None,
    energy_uj: int | None,
    ttft_s: float | None,
    learnt: list[float],
) -> None:
    first, *_ = stream(SEED, 1)
    one = booking(error=error, output_tokens=tokens, predicted_energy_uj=energy_uj, ttft_s=ttft_s)
    batch = Batch(id="x", settled=first.settled, bookings=(one,), transfers=(), coefficients={error: tuple(learnt)})
    spool(tmp_path).append(batch)
    assert replayed(tmp_path) == [batch]


def test_batches_come_out_in_their_order_and_once(tmp_path: Path) -> None:
    batches = list(stream(SEED, 12))
    first = spool(tmp_path)
    for batch in batches[:5]:
        first.append(batch)
    second = spool(tmp_path)
    for batch in batches[5:]:
        second.append(batch)
    assert second.pending() == 12
    assert replayed(tmp_path) == batches
    assert replayed(tmp_path) == []


def test_what_cannot_be_written_yet_stays_with_all_after_it(tmp_path: Path) -> None:
    batches = list(stream(SEED, 4))
    waiting = spool(tmp_path)
    for batch in batches:
        waiting.append(batch)
    written: list[Batch] = []

    def write(batch: Batch) -> None:
        if len(written) == 2:
            raise LedgerUnreachable("not now")
        written.append(batch)

    with pytest.raises(LedgerUnreachable):
        waiting.replay(write)
    assert waiting.pending() == 2
    assert written + replayed(tmp_path) == batches


def test_a_batch_that_is_put_aside_twice_is_there_once_and_waits_no_more(tmp_path: Path) -> None:
    (batch,) = stream(SEED, 1)
    waiting = spool(tmp_path)
    aside = waiting.put_aside(batch)
    assert waiting.put_aside(batch) == aside
    assert list(tmp_path.iterdir()) == [aside]
    assert spool(tmp_path).pending() == 0
    aside.rename(aside.with_suffix(".batch"))
    assert replayed(tmp_path) == [batch]


def test_a_process_that_dies_before_it_forgets_a_batch_writes_it_again(tmp_path: Path) -> None:
    (batch,) = stream(SEED, 1)
    spool(tmp_path).append(batch)
    written: list[Batch] = []

    def write_and_die(batch: Batch) -> None:
        written.append(batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool(tmp_path).replay(write_and_die)
    assert written + replayed(tmp_path) == [batch, batch]


def test_a_file_cut_off_or_changed_anywhere_is_put_aside_and_never_written(tmp_path: Path) -> None:
    batch = Batch(id="x", coefficients={"a": (1.5,)})
    spool(tmp_path).append(batch)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for at in range(len(whole) - 1):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            done = spool(tmp_path).replay(never)
            assert done == Replayed(written=0, aside=(f"{path.with_suffix('.aside')}: its checksum does not fit",))
    path.write_bytes(whole)
    assert replayed(tmp_path) == [batch]


def test_a_file_with_the_checksum_of_something_else_than_a_batch_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "000000000001-0.batch").write_bytes(b'56d44085\n{"id": 1}\n')
    (tmp_path / "000000000002-0.batch").write_bytes(b"22298ed7\nnothing\n")
    assert spool(tmp_path).replay(never) == Replayed(
        written=0,
        aside=(
            f"{tmp_path}/000000000001-0.aside: it is no batch: Expected `str`, got `int` - at `$.id`",
            f"{tmp_path}/000000000002-0.aside: it is no batch: Expecting value: line 1 column 1 (char 0)",
        ),
    )


@pytest.mark.parametrize("wait_s", [0.0, 0.01, 0.05])
def test_a_process_that_is_killed_leaves_every_batch_that_it_acknowledged(tmp_path: Path, wait_s: float) -> None:
    command = [sys.executable, ledger_batches.__file__, "spool", str(tmp_path), str(SEED), "5000"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline()]
    time.sleep(wait_s)
    writer.kill()
    acknowledged += writer.stdout.readlines()
    writer.wait()
    batches = replayed(tmp_path)
    # Killed between the last batch's name and the word of it, or not.
    assert 0 < len(acknowledged) < 5000
    assert len(batches) - len(acknowledged) in (0, 1)
    assert batches == list(stream(SEED, len(batches)))


def test_a_batch_that_was_being_written_when_the_process_died_is_left_out_and_told(tmp_path: Path) -> None:
    batches = list(stream(SEED, 2))
    spool(tmp_path).append(batches[0])
    (path,) = tmp_path.iterdir()
    (tmp_path / "000000000002-0123456789abcdef.torn").write_bytes(path.read_bytes()[:-100])
    found = spool(tmp_path)
    assert (found.torn, found.pending()) == (1, 1)
    assert spool(tmp_path).torn == 0
    assert replayed(tmp_path) == batches[:1]


def test_a_spool_that_is_full_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    batches = [Batch(id=str(number), bookings=(booking(),)) for number in range(3)]
    spool(tmp_path).append(batches[0])
    (path,) = tmp_path.iterdir()
    small = spool(tmp_path, bytes_max=2 * path.stat().st_size)
    small.append(batches[1])
    with pytest.raises(SpoolFull, match="holds 2 batches"):
        small.append(batches[2])
    small.replay(lambda batch: None)
    small.append(batches[2])
    assert replayed(tmp_path) == batches[2:]


def test_a_disk_that_is_full_says_so_and_leaves_no_half_batch(tmp_path: Path) -> None:
    small = Batch(id="small")
    spool(tmp_path).append(small)
    command = [sys.executable, "-c", LIMITED, ledger_batches.__file__, "spool", str(tmp_path), str(SEED), "100"]
    writer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"SpoolFull: The spool {tmp_path} is full: File too large." in writer.stderr
    found = spool(tmp_path)
    assert found.torn == 0
    written = writer.stdout.split()
    assert replayed(tmp_path) == [small, *stream(SEED, len(written))]
