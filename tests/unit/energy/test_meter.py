"""Begin, lap and end, over recordings."""

import time
from itertools import accumulate

import pytest
from economizer.energy.meter import EmptyMeter, ReplayMeter
from economizer.energy.types import Measurement
from hypothesis import given
from hypothesis import strategies as st


def replayed(seconds: float, energy_uj: int | None, *, idle_uj: int = 0, note: str = "") -> Measurement:
    return Measurement(
        seconds=seconds,
        energy_uj=energy_uj,
        idle_uj=idle_uj,
        method="replay",
        uncertainty=0.0 if energy_uj is not None and seconds else None,
        note=note,
    )


def test_laps_follow_each_other_without_a_gap() -> None:
    meter = ReplayMeter([(0, 100), (1, 350), (3, 350), (4, 400)])
    meter.begin("engine")
    assert meter.lap("engine") == replayed(1, 250)
    assert meter.lap("engine") == replayed(2, 0)
    assert meter.end("engine") == replayed(1, 50)


def test_spans_overlap() -> None:
    meter = ReplayMeter([(0, 0), (1, 10), (2, 30), (3, 60)])
    meter.begin("outer")
    meter.begin("inner")
    assert meter.end("inner") == replayed(1, 20)
    assert meter.end("outer") == replayed(3, 60)


def test_idle_is_never_more_than_all() -> None:
    meter = ReplayMeter([(0, 0), (2, 9_000_000), (4, 10_000_000)], idle_w=2)
    meter.begin("engine")
    assert meter.lap("engine") == replayed(2, 9_000_000, idle_uj=4_000_000)
    assert meter.lap("engine") == replayed(2, 1_000_000, idle_uj=1_000_000)


def test_after_the_recording_energy_is_unknown() -> None:
    meter = ReplayMeter([(5, 10), (6, 20)])
    meter.begin("engine")
    assert meter.lap("engine") == replayed(1, 10)
    assert meter.lap("engine") == replayed(0, None, note="the recording has ended")
    assert meter.end("engine") == replayed(0, None, note="the recording has ended")
    empty = ReplayMeter([])
    empty.begin("engine")
    assert empty.end("engine") == replayed(0, None, note="the recording has ended")


def test_a_reading_that_fails_makes_the_spans_on_both_sides_unknown_and_no_more() -> None:
    meter = ReplayMeter([(0, 0), (1, 5), (2, None), (3, 20), (4, 27)])
    meter.begin("engine")
    assert [meter.lap("engine") for _ in range(4)] == [
        replayed(1, 5),
        replayed(1, None, note="the recording has no energy here"),
        replayed(1, None, note="the recording has no energy here"),
        replayed(1, 7),
    ]


def test_a_span_is_begun_once_and_ended_once() -> None:
    meter = ReplayMeter([(0, 0), (1, 1), (2, 2), (3, 3)])
    for unknown in (meter.lap, meter.end):
        with pytest.raises(ValueError, match="key is 'engine': is not open"):
            unknown("engine")
    meter.begin("engine")
    with pytest.raises(ValueError, match="key is 'engine': is open already"):
        meter.begin("engine")
    assert meter.end("engine") == replayed(1, 1)
    with pytest.raises(ValueError, match="is not open"):
        meter.end("engine")
    meter.begin("engine")
    meter.close()
    with pytest.raises(ValueError, match="is not open"):
        meter.end("engine")


def test_a_recording_does_not_go_back() -> None:
    with pytest.raises(ValueError, match=r"energy_uj is \[5, 4\]: must not go back"):
        ReplayMeter([(0, 5), (1, None), (2, 4)])
    with pytest.raises(ValueError, match="seconds is"):
        ReplayMeter([(1, 5), (0, 5)])


def test_an_empty_meter_measures_seconds_and_says_why_it_measures_no_more() -> None:
    meter = EmptyMeter("the engine has no GPU")
    meter.begin("engine")
    before = time.monotonic()
    time.sleep(0.01)
    slept_s = time.monotonic() - before
    measurement = meter.end("engine")
    assert measurement == Measurement(
        seconds=measurement.seconds, energy_uj=None, method="none", note="the engine has no GPU"
    )
    assert measurement.seconds >= slept_s
    assert meter.describe() == "no meter: the engine has no GPU"


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**15)), min_size=2, max_size=20))
def test_laps_add_up_to_the_whole(steps: list[tuple[int, int]]) -> None:
    seconds = list(accumulate(step for step, _ in steps))
    energy_uj = list(accumulate(grown for _, grown in steps))
    readings = list(zip(map(float, seconds), energy_uj, strict=True))
    meter, whole = ReplayMeter(readings), ReplayMeter([readings[0], readings[-1]])
    meter.begin("engine")
    whole.begin("engine")
    laps = [meter.lap("engine") for _ in readings[1:]]
    total = whole.end("engine")
    assert sum(lap.energy_uj or 0 for lap in laps) == total.energy_uj
    assert sum(lap.seconds for lap in laps) == total.seconds
