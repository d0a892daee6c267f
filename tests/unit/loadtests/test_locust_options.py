from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from load.locust_options import curve


def options(**given: object) -> Namespace:
    return Namespace(**{"shape": "day", "run_time": 600, "data": "", **given})


def test_steady_users_need_no_shape() -> None:
    assert curve(options(shape="steady", run_time=None)) is None


def test_a_shape_without_a_run_time_is_refused() -> None:
    with pytest.raises(ValueError, match="--shape bursts is pressed into --run-time"):
        curve(options(shape="bursts", run_time=None))


def test_the_day_is_the_first_table_of_rates_in_the_folder_of_data_or_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    table = tmp_path / "traces" / "servegen_a_rate_10min.csv"
    table.write_text("t_s,rate_rps\n0,1.0\n600,4.0\n1200,2.0\n")
    for data in (tmp_path, table):
        found = curve(options(data=str(data)))
        assert found is not None
        assert [share for _, share in found.points] == [0.25, 1.0, 0.5]


def test_a_folder_without_rates_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no servegen_"):
        curve(options(data=str(tmp_path)))
