import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from economizer.cli import main
from economizer.ledger.store import Store
from economizer.ledger.types import Batch, Booking, Counterfactual
from ledger_batches import amounts, booking, posting, settled, share

BEGAN_S = 1_763_942_400  # 2025-11-24


def asked(
    request_id: str,
    *,
    family: str = "m",
    by: str = "int8",
    arm: Literal["full", "routed"] | None = None,
    ended_s: float = BEGAN_S + 60,
) -> Booking:
    """A request that would have taken 100 J and 50 micro-dollars of the full model, give or take a fifth."""
    full = Counterfactual(
        variant="full",
        amounts=amounts(100_000_000, 50),
        low_uj=80_000_000,
        high_uj=120_000_000,
        low_uusd=40,
        high_uusd=60,
    )
    return booking(request_id, family=family, variant=by, ended_s=ended_s, full=full, arm=arm)


def ledger(folder: Path, took_j: dict[str, int], bookings: Sequence[Booking]) -> str:
    """The URL of a ledger in which these requests were measured, each joule at half a micro-dollar."""
    shares = tuple(share(name, amounts(joules * 1_000_000, joules // 2)) for name, joules in took_j.items())
    window = settled(0, ended_s=BEGAN_S + 60, postings=tuple(posting(one.usage) for one in shares), shares=shares)
    url = f"sqlite:///{folder / 'ledger.db'}"
    store = Store.open(url)
    store.write(Batch(id="b1", settled=(window,), bookings=tuple(bookings)))
    store.close()
    return url


@pytest.fixture
def few(tmp_path: Path) -> str:
    """Two requests of one family, one of another, and one that ended a day later."""
    bookings = [
        asked("a", arm="routed"),
        asked("b", by="full", arm="full"),
        asked("c", family="n"),
        asked("d", ended_s=BEGAN_S + 86_400),
    ]
    return ledger(tmp_path, {"a": 70, "b": 98, "c": 40, "d": 10}, bookings)


DAY = ["--since", "2025-11-24", "--until", "2025-11-25"]


def test_savings_for_people_are_a_line_and_a_sentence_for_each_family_and_unit(
    few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["savings", *DAY, "--ledger", few]) == 0
    assert capsys.readouterr() == (
        "family  unit  requests  saved    claimed          of routed        held out  evidence  corrected  verdict\n"
        "*       J     2         90       45 % (31 to 54)  30 % (12 to 42)  1         -         -          unchecked\n"
        "*       USD   2         4.5e-05  45 % (31 to 54)  30 % (12 to 42)  1         -         -          unchecked\n"
        "m       J     1         30       30 % (12 to 42)  30 % (12 to 42)  1         -         -          unchecked\n"
        "m       USD   1         1.5e-05  30 % (12 to 42)  30 % (12 to 42)  1         -         -          unchecked\n"
        "n       J     1         60       60 % (50 to 67)  -                0         -         -          unchecked\n"
        "n       USD   1         3e-05    60 % (50 to 67)  -                0         -         -          unchecked\n"
        "\n"
        "* in J: claimed saving 30 % (12 to 42); 1 held-out and 1 routed requests cannot check it\n"
        "* in USD: claimed saving 30 % (12 to 42); 1 held-out and 1 routed requests cannot check it\n"
        "m in J: claimed saving 30 % (12 to 42); 1 held-out and 1 routed requests cannot check it\n"
        "m in USD: claimed saving 30 % (12 to 42); 1 held-out and 1 routed requests cannot check it\n"
        "n in J: claimed saving 60 % (50 to 67); 0 held-out and 0 routed requests cannot check it\n"
        "n in USD: claimed saving 60 % (50 to 67); 0 held-out and 0 routed requests cannot check it\n",
        "",
    )


def test_savings_of_one_family_and_of_another_day_for_machines(few: str, capsys: pytest.CaptureFixture[str]) -> None:
    def found(*words: str) -> list[tuple[str, str, int, float]]:
        assert main(["savings", "--json", "--ledger", few, *words]) == 0
        rows = json.loads(capsys.readouterr().out)
        return [(row["family"], row["unit"], row["requests"], row["claimed"]["amount"]["value"]) for row in rows]

    assert found(*DAY, "--family", "n")[2:] == [("n", "J", 1, 60.0), ("n", "USD", 1, 0.00003)]
    assert found("--since", "2025-11-25")[2:] == [("m", "J", 1, 90.0), ("m", "USD", 1, 0.000045)]


def test_a_hold_out_of_thirty_checks_the_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = [asked(f"f{number}", by="full", arm="full") for number in range(30)]
    routed = [asked(f"r{number}", arm="routed") for number in range(30)]
    took_j = {one.request_id: (100 if one.arm == "full" else 70) - 2 + 4 * (at % 2) for at, one in enumerate(full)}
    took_j |= {one.request_id: 68 + 4 * (at % 2) for at, one in enumerate(routed)}
    assert main(["savings", *DAY, "--ledger", ledger(tmp_path, took_j, [*full, *routed])]) == 0
    assert (
        "m in J: claimed saving 30 % (12 to 42); hold-out of 30 requests says 30 % (29 to 31): consistent\n"
        in capsys.readouterr().out
    )


def test_nothing_in_the_time_is_no_finding(few: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["savings", "--since", "2025-11-01", "--until", "2025-11-02", "--ledger", few]) == 0
    assert capsys.readouterr() == ("(none)\n", "")


def test_without_a_ledger_there_are_no_savings_and_none_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "ledger.db"
    assert main(["savings", "--ledger", f"sqlite:///{path}"]) == 1
    assert capsys.readouterr() == (
        "",
        f"economizer: There is no ledger at {path}: `economizer up` and `economizer keys create` make it.\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_commands_without_a_ledger_do_not_wait_for_its_libraries() -> None:
    code = "import sys, economizer.cli; print(sorted({'sqlalchemy', 'alembic', 'psycopg', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
