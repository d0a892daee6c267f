"""When a distillation ends early, by the joules of its gains, and when it waits, by the grid's carbon intensity."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from economizer.energy.carbon import HourlyTable
from economizer.variants.price import CarbonProviderSettings
from economizer_training.errors import TrainingError
from economizer_training.pacing import EarlyStopping, Lookout, Pause, Sight, gains
from economizer_training.settings import parse_settings

NOON_S = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def heldout(step: int, kl: float, energy_j: float | None, paused_j: float = 0.0) -> Mapping[str, Any]:
    return {"kind": "heldout", "step": step, "kl": kl, "energy_j": energy_j, "paused_j": paused_j}


def learnt(step: int, energy_j: float) -> Mapping[str, Any]:
    return {"kind": "step", "step": step, "energy_j": energy_j, "paused_j": 0.0}


def reloaded(step: int, energy_j: float) -> Mapping[str, Any]:
    return {"kind": "reloaded", "step": step, "energy_j": energy_j, "paused_j": 0.0}


def test_a_gain_is_nats_per_kilojoule_since_the_score_before() -> None:
    lines = [heldout(0, 2.0, 100), learnt(1, 400), heldout(2, 1.5, 600), heldout(4, 1.4, 1600), heldout(6, 1.5, 2600)]
    assert gains(lines) == pytest.approx([1.0, 0.1, -0.1])


def test_the_joules_of_a_pause_do_not_count_against_what_was_learnt() -> None:
    assert gains([heldout(0, 2.0, 0), heldout(2, 1.5, 9500, paused_j=9000)]) == pytest.approx([1.0])


def test_a_gain_whose_joules_are_not_known_is_not_known() -> None:
    assert gains([heldout(0, 2.0, 100), heldout(2, 1.5, None), heldout(4, 1.4, None)]) == [None, None]


def test_a_run_that_was_killed_gains_what_one_that_was_not_does() -> None:
    """Steps 3 and 4 and the second score were done twice, at 200 J a step and 100 J a score."""
    whole = [heldout(0, 2.0, 100), learnt(1, 300), learnt(2, 500), heldout(2, 1.5, 600), learnt(3, 800)]
    undisturbed = [*whole, learnt(4, 1000), heldout(4, 1.4, 1100)]
    killed = [*undisturbed, reloaded(2, 1150), learnt(3, 1350), learnt(4, 1550), heldout(4, 1.4, 1650)]
    assert gains(killed) == pytest.approx(gains(undisturbed))


def test_a_run_that_was_killed_before_its_first_checkpoint_is_judged_from_its_second_beginning() -> None:
    lines = [heldout(0, 2.0, 100), learnt(1, 300), heldout(0, 2.0, 500), learnt(1, 700), heldout(2, 1.5, 1000)]
    assert gains(lines) == pytest.approx([1.0])


def test_what_was_learnt_between_a_score_and_a_checkpoint_without_one_counts() -> None:
    """Killed in a pause after step 3: steps 1 to 3 took 600 J, step 4 200 J."""
    lines = [
        heldout(0, 2.0, 0),
        learnt(1, 200),
        learnt(2, 400),
        learnt(3, 600),
        reloaded(3, 900),
        heldout(4, 1.2, 1100),
    ]
    assert gains(lines) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("gained", "ends"),
    [
        ([0.5, 0.01, 0.02], True),
        ([0.01, 0.5, 0.02], False),
        ([0.01], False),
        ([], False),
        ([0.01, None], False),
        ([0.5, 0.01, -0.3], True),
        ([0.5, 0.01, 0.05], False),
    ],
)
def test_a_run_ends_after_two_scores_in_a_row_that_gained_too_little(gained: list[float | None], ends: bool) -> None:
    stopping = EarlyStopping(kl_per_kj_min=0.05, patience=2)
    assert stopping.too_little(gained) == (gained[-2:] if ends else [])


class Clock:
    """Stands still but for what sleeps."""

    def __init__(self, now_s: float = NOON_S) -> None:
        self.time_s = now_s

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


class Grid:
    """A grid whose intensity is set by hand, and that counts how often it is asked."""

    def __init__(self, g_per_kwh: float | None, trouble: str | None = None) -> None:
        self.g_per_kwh, self.trouble, self.asked = g_per_kwh, trouble, 0

    def at(self, wall_s: float) -> float | None:
        return self.g_per_kwh

    def refresh(self, now_s: float) -> str | None:
        self.asked += 1
        return self.trouble


def test_the_grid_is_looked_at_once_a_minute_at_most() -> None:
    clock, grid = Clock(), Grid(412.0)
    lookout = Lookout(grid, clock)
    seen = []
    for _ in range(12):
        seen.append(lookout.look().g_per_kwh)
        clock.sleep(10.0)
        grid.g_per_kwh = 250.0
    assert seen == [412.0] * 6 + [250.0] * 6
    assert grid.asked == 2


def test_a_clock_that_was_set_back_does_not_blind_it() -> None:
    clock, grid = Clock(), Grid(412.0)
    lookout = Lookout(grid, clock)
    lookout.look()
    clock.time_s -= 3600
    grid.g_per_kwh = 250.0
    assert lookout.look() == Sight(g_per_kwh=250.0)


def test_what_goes_wrong_is_told_and_the_last_answer_holds() -> None:
    assert Lookout(Grid(300.0, "no answer"), Clock()).look() == Sight(g_per_kwh=300.0, trouble="no answer")


def test_an_hour_that_a_table_does_not_have_is_told() -> None:
    table = HourlyTable(g_per_kwh={(13,): 200.0})
    told = "the carbon intensity of 2026-03-01T12:00Z is not known"
    assert Lookout(table, Clock()).look() == Sight(g_per_kwh=None, trouble=told)


def written(folder: Path, *hours: str) -> str:
    path = folder / "grid.csv"
    path.write_text("\n".join(["hour,g_per_kwh", *hours, ""]))
    return str(path)


def test_workers_wait_above_the_bound_and_not_at_it_or_where_nothing_is_known(tmp_path: Path) -> None:
    pause = Pause(carbon_g_per_kwh_max=300, carbon_table=written(tmp_path, "12,412", "13,300"))
    table = pause.intensity({})
    assert [pause.is_above(table.at(NOON_S + hour * 3600)) for hour in range(3)] == [True, False, False]


def test_a_table_whose_every_hour_is_above_the_bound_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "12,412", "13,301")
    with pytest.raises(TrainingError) as refused:
        Pause(carbon_g_per_kwh_max=300, carbon_table=path).intensity({})
    told = f"pause.carbon_g_per_kwh_max is 300, and {path} has no hour under 301: it would wait for ever"
    assert str(refused.value) == told


def test_a_table_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "25,412")
    with pytest.raises(TrainingError, match=r"pause.carbon_table: .*grid.csv line 2: hour is '25': must be a whole"):
        Pause(carbon_g_per_kwh_max=300, carbon_table=path).intensity({})
    with pytest.raises(TrainingError, match=r"pause.carbon_table: .*missing.csv: .*No such file"):
        Pause(carbon_g_per_kwh_max=300, carbon_table=str(tmp_path / "missing.csv")).intensity({})


def test_a_provider_needs_its_token() -> None:
    provider = CarbonProviderSettings(url="https://grid.invalid/now", token_env="GRID_TOKEN")
    pause = Pause(carbon_g_per_kwh_max=300, carbon_provider=provider)
    with pytest.raises(TrainingError, match=r"pause.carbon_provider.token_env: GRID_TOKEN is not set"):
        pause.intensity({})
    assert pause.intensity({"GRID_TOKEN": "secret"}).at(NOON_S) is None


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (EarlyStopping, {"kl_per_kj_min": -1}, "kl_per_kj_min is -1.0: must be 0 or more and finite"),
        (EarlyStopping, {"kl_per_kj_min": 0.1, "patience": 0}, "patience is 0: must be 1 or more"),
        (EarlyStopping, {"kl_per_kj_min": 0.1, "mode": "min"}, "mode: is not a known key here"),
        (EarlyStopping, {}, "kl_per_kj_min: must be given"),
        (Pause, {"carbon_g_per_kwh_max": 300}, "must have exactly one of carbon_table and carbon_provider"),
        (Pause, {"carbon_g_per_kwh_max": -1, "carbon_table": "grid.csv"}, "carbon_g_per_kwh_max is -1.0: must be 0 or"),
        (Pause, {"carbon_g_per_kwh_max": 300, "carbon_provider": {"url": "grid"}}, "url is 'grid': must begin with"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind: type, given: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError) as refused:
        parse_settings(given, kind, "run.yaml")
    assert told in str(refused.value)
