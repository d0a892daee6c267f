import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from economizer.energy.carbon import ConstantIntensity, HourlyTable


def seconds(*when: int) -> float:
    """Seconds since the epoch of a time in UTC."""
    year, month, day, hour, minute = when
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()


def table(tmp_path: Path, content: str) -> HourlyTable:
    path = tmp_path / "grid.csv"
    path.write_text(content, encoding="utf-8")
    return HourlyTable.read(path)


def test_a_constant_is_the_same_at_all_times_and_none_is_unknown() -> None:
    assert [ConstantIntensity(473.0).at(wall_s) for wall_s in (0.0, 2e9)] == [473.0, 473.0]
    assert ConstantIntensity(None).at(0.0) is None
    assert ConstantIntensity(473.0).refresh(0.0) is None


@pytest.mark.parametrize(
    "time",
    [
        "2025-01-31 13:00:00",
        "2025-01-31T13:00",
        "2025-01-31T13:00Z",
        "2025-01-31T15:00:00+02:00",
        "2025-01-31T18:30+05:30",
    ],
)
def test_a_table_is_read_in_utc_however_its_times_are_written(tmp_path: Path, time: str) -> None:
    read = table(tmp_path, f"\ufefftime,zone,g_per_kwh\n{time},FR,52.5\n")
    assert read.at(seconds(2025, 1, 31, 13, 0)) == 52.5
    assert read.at(seconds(2025, 1, 31, 13, 59)) == 52.5
    assert (read.at(seconds(2025, 1, 31, 14, 0)), read.at(seconds(2025, 1, 31, 12, 59))) == (None, None)


def test_a_year_that_the_table_does_not_have_is_like_its_latest(tmp_path: Path) -> None:
    read = table(tmp_path, "time,g_per_kwh\n2022-05-01T06:00Z,20\n2021-05-01T06:00Z,10\n2021-05-02T06:00Z,30\n")
    assert [read.at(seconds(year, 5, 1, 6, 0)) for year in (2020, 2021, 2022, 2026)] == [20.0, 10.0, 20.0, 20.0]
    assert read.at(seconds(2026, 5, 2, 6, 0)) == 30.0
    assert read.at(seconds(2026, 5, 3, 6, 0)) is None


def test_a_leap_day_is_like_the_day_before_it_in_a_common_year(tmp_path: Path) -> None:
    common = "time,g_per_kwh\n2023-02-28T06:00Z,20\n"
    assert table(tmp_path, common).at(seconds(2028, 2, 29, 6, 30)) == 20.0
    assert table(tmp_path, common + "2024-02-29T06:00Z,40\n").at(seconds(2028, 2, 29, 6, 30)) == 40.0


def test_a_table_by_the_hour_of_the_day_holds_on_every_day(tmp_path: Path) -> None:
    read = table(tmp_path, "hour,g_per_kwh\n0,100\n23,200\n")
    assert read.at(seconds(2026, 7, 1, 0, 0)) == 100.0
    assert read.at(seconds(2031, 2, 28, 23, 59)) == 200.0
    assert read.at(seconds(2026, 7, 1, 12, 0)) is None


def test_an_hour_without_a_value_is_unknown_and_not_zero(tmp_path: Path) -> None:
    read = table(tmp_path, "hour,g_per_kwh\n0,\n1,0\n")
    assert (read.at(seconds(2026, 7, 1, 0, 0)), read.at(seconds(2026, 7, 1, 1, 0))) == (None, 0.0)


COLUMNS = "must have the column g_per_kwh, and either time or hour"
TIME = "must be the beginning of an hour, such as 2025-01-31T13:00Z"
NUMBER = "must be a number of 0 or more and finite, or empty where it is unknown"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("", f"grid.csv line 1 is '': {COLUMNS}"),
        ("when,g\n", f"grid.csv line 1 is 'when,g': {COLUMNS}"),
        ("time,hour,g_per_kwh\n", f"grid.csv line 1 is 'time,hour,g_per_kwh': {COLUMNS}"),
        ("hour,g_per_kwh\n", "grid.csv is 0: must have at least one hour"),
        ("hour,g_per_kwh\n3,\n", "grid.csv is 0: must have at least one hour"),
        ("time,g_per_kwh\n2025-13-01T00:00,5\n", f"grid.csv line 2: time is '2025-13-01T00:00': {TIME}"),
        ("time,g_per_kwh\n2025-01-01T00:30,5\n", f"grid.csv line 2: time is '2025-01-01T00:30': {TIME}"),
        ("time,g_per_kwh\n,5\n", f"grid.csv line 2: time is '': {TIME}"),
        ("hour,g_per_kwh\n24,5\n", "grid.csv line 2: hour is '24': must be a whole number from 0 to 23"),
        ("hour,g_per_kwh\n-1,5\n", "grid.csv line 2: hour is '-1': must be a whole number from 0 to 23"),
        ("hour,g_per_kwh\n1,5\n2,-5\n", f"grid.csv line 3: g_per_kwh is '-5': {NUMBER}"),
        ("hour,g_per_kwh\n1,5\n2,nan\n", f"grid.csv line 3: g_per_kwh is 'nan': {NUMBER}"),
        ("hour,g_per_kwh\n1,inf\n", f"grid.csv line 2: g_per_kwh is 'inf': {NUMBER}"),
        ("hour,g_per_kwh\n1,green\n", f"grid.csv line 2: g_per_kwh is 'green': {NUMBER}"),
        ("hour,g_per_kwh\n1,5\n1,6\n", "grid.csv line 3: hour is '1': is given twice"),
        ("hour,g_per_kwh\n1,\n1,6\n", "grid.csv line 3: hour is '1': is given twice"),
        (
            "time,g_per_kwh\n2025-01-01 00:00,5\n2025-01-01T01:00+01:00,6\n",
            "grid.csv line 3: time is '2025-01-01T01:00+01:00': is given twice",
        ),
        (f'hour,g_per_kwh\n"{"1" * 200_000}",5\n', "grid.csv line 1: is no CSV: field larger than field limit"),
    ],
)
def test_a_wrong_table_is_refused_and_its_line_is_named(tmp_path: Path, content: str, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}"):
        table(tmp_path, content)
