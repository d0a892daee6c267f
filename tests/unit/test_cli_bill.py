import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from economizer.admission.keys import KeyRecord, hash_of
from economizer.cli import main
from economizer.config import IMPORT_PATH
from economizer.ledger.store import Store
from economizer.ledger.types import Batch
from ledger_batches import small_bill

BEGAN_S = 1_763_942_400  # 2025-11-24


def written(path: Path, what: Batch) -> str:
    url = f"sqlite:///{path}"
    store = Store.open(url)
    store.write(what)
    store.close()
    return url


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """The URL of a ledger with one window in it."""
    return written(tmp_path / "ledger.db", small_bill(BEGAN_S))


def bill(*words: str) -> list[str]:
    return ["bill", "--since", "2025-11-24", "--until", "2025-11-25", *words]


def test_a_bill_for_people_says_who_used_what_and_that_it_adds_up(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(bill("--ledger", ledger)) == 0
    assert capsys.readouterr() == (
        "2025-11-24T00:00Z to 2025-11-25T00:00Z\n"
        "\n"
        "tenant  variant  requests  prompt  cached  output  energy J  with idle  cost USD  with idle  carbon g"
        "  with idle\n"
        "acme    m@int8          1       8       4       4     0.200      1.000  0.000004   0.000020   unknown"
        "    unknown\n"
        "total                   1       8       4       4     0.200      1.000  0.000004   0.000020   unknown"
        "    unknown\n"
        "\n"
        "          attributed      idle   startup      lost  unclaimed       sum  measured\n"
        "energy J       0.200     0.800     0.000     0.000      0.000     1.000     1.000\n"
        "cost USD    0.000004  0.000016  0.000000  0.000000   0.000000  0.000020  0.000020\n"
        "carbon g     unknown   unknown  0.000000  0.000000   0.000000   unknown   unknown\n"
        "\n"
        "meters: rapl; 0 s unmeasured, 0 gaps\n"
        "the bill closes\n",
        "",
    )


def test_a_bill_for_machines(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(bill("--ledger", ledger, "--json", "--by", "hour,tenant")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["closes"], found["totals"]["measured_uj"], found["totals"]["attributed_uj"]) == (
        True,
        1_000_000,
        200_000,
    )
    assert [(row["hour"], row["tenant"]) for row in found["rows"]] == [("2025-11-24T00:00Z", "acme")]
    assert main(bill("--ledger", ledger, "--csv", "--by", "month", "--family", "m")) == 0
    assert capsys.readouterr().out.splitlines()[1] == "2025-11,1,8,4,4,200000,4,,1000000,20,"
    assert main(bill("--ledger", ledger, "--csv", "--tenant", "beta")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_bill_that_does_not_close_is_shown_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = written(tmp_path / "wrong.db", small_bill(BEGAN_S, idle_uj=700_000))
    assert main(bill("--ledger", url)) == 1
    out, err = capsys.readouterr()
    assert out.endswith("the bill does not close: meters less accounts +100000 uJ\n")
    assert err == "economizer: the bill does not close: meters less accounts +100000 uJ\n"


def test_reading_makes_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "ledger.db"
    for words in (["bill"], ["keys", "list"], ["keys", "revoke", "a"], ["keys", "rotate", "a"]):
        assert main([*words, "--ledger", f"sqlite:///{path}"]) == 1
        assert capsys.readouterr() == (
            "",
            f"economizer: There is no ledger at {path}: `economizer up` and `economizer keys create` make it.\n",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database at all, but a text that is long enough to have a header\n" * 50, encoding="utf-8")
    assert main(["bill", "--ledger", f"sqlite:///{path}"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"economizer: The ledger sqlite:///{path} cannot be used")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--since", "soon"], "since is 'soon': must be an ISO date or time"),
        (["--since", "today", "--until", "yesterday"], "until is 'yesterday': must be after since ('today')"),
        (["--by", "user"], "by is 'user': must be different words of tenant, family, variant, hour, day, month"),
    ],
)
def test_other_words_are_refused_by_name(
    ledger: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bill", "--ledger", ledger, *words]) == 1
    assert capsys.readouterr().err.startswith(f"economizer: {message}")


def config(folder: Path, **args: Any) -> str:
    engine = {"engine": {"command": ["server"]}, "context_tokens_max": 64, "hardware": "cpu"}
    known = {
        "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
        "families": {"m": {"full": "full", "variants": {"full": engine}}},
    }
    path = folder / "config.yaml"
    application = {"import_path": IMPORT_PATH, "args": {**known, **args}}
    content = {"http_options": {"host": "127.0.0.1"}, "applications": [application]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_the_ledger_is_the_configurations_where_none_is_named(
    tmp_path: Path, ledger: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path, ledger={"url": ledger})
    assert main(bill(file, "--csv")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setenv("LEDGER_URL", ledger)
    assert main(bill("--csv", "--ledger", "env:LEDGER_URL")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["keys", "list", "--config", file]) == 0
    assert capsys.readouterr().out == "(none)\n"
    file = config(tmp_path, ledger=None)
    assert main(["bill", file]) == 1
    assert capsys.readouterr().err == f"economizer: {file} keeps no ledger (ledger: null): name one with --ledger.\n"


def keys_of(url: str) -> list[KeyRecord]:
    store = Store.open(url)
    try:
        return store.keys(True)
    finally:
        store.close()


def test_a_key_is_shown_once_on_stdout_and_only_its_hash_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'ledger.db'}"
    assert main(["keys", "create", "acme", "--expires", "90d", "--note", "for CI", "--ledger", url]) == 0
    out, err = capsys.readouterr()
    (text,) = out.splitlines()
    (key,) = keys_of(url)
    assert (key.tenant, key.role, key.note, key.hash) == ("acme", "tenant", "for CI", hash_of(text))
    assert key.expires_s == pytest.approx(time.time() + 90 * 86_400, abs=60)
    assert err.startswith(f"Key {key.id} of acme (tenant) ends ")
    assert text not in err
    assert main(["keys", "create", "ops", "--admin", "--ledger", url]) == 0
    assert [key.role for key in keys_of(url)] == ["tenant", "admin"]
    assert capsys.readouterr().err.endswith(" of ops (admin) never ends. It is shown this once, and kept nowhere:\n")
    assert main(["keys", "create", "No Name", "--ledger", url]) == 1
    assert capsys.readouterr().err.startswith("economizer: tenant is 'No Name': must be ")


def test_keys_are_listed_without_hash_or_secret(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "acme", "--note", "for CI", "--ledger", ledger]) == 0
    text = capsys.readouterr().out.strip()
    (key,) = keys_of(ledger)
    created = time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(key.created_s))
    assert main(["keys", "list", "--ledger", ledger]) == 0
    out = capsys.readouterr().out
    titles, line = (re.split(r" {2,}", line) for line in out.splitlines())
    assert titles == ["id", "tenant", "role", "key", "state", "created", "expires", "replaced by", "note"]
    assert line == [key.id, "acme", "tenant", f"eco-{key.id}-...", "works", created, "-", "-", "for CI"]
    assert main(["keys", "list", "--json", "--ledger", ledger]) == 0
    listed = capsys.readouterr().out
    assert [key["id"] for key in json.loads(listed)] == [key.id]
    for shown in (out, listed):
        assert text not in shown
        assert key.hash not in shown


def test_a_revoked_key_is_listed_with_all_others_only(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "acme", "--ledger", ledger]) == 0
    (key,) = keys_of(ledger)
    assert main(["keys", "revoke", key.id, "--ledger", ledger]) == 0
    assert capsys.readouterr().err.endswith(f"Key {key.id} is revoked.\n")
    assert main(["keys", "list", "--ledger", ledger]) == 0
    assert main(["keys", "list", "--all", "--ledger", ledger]) == 0
    none, _, line = capsys.readouterr().out.splitlines()
    assert none == "(none)"
    assert "revoked" in line.split()
    assert main(["keys", "revoke", key.id, "--ledger", ledger]) == 1
    assert capsys.readouterr().err == f"economizer: There is no key {key.id!r} that works.\n"


def test_a_rotated_key_works_for_its_grace_and_the_new_one_lasts_as_long_as_it_was_to(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", "acme", "--admin", "--expires", "30d", "--ledger", ledger]) == 0
    (first,) = keys_of(ledger)
    capsys.readouterr()
    assert main(["keys", "rotate", first.id, "--grace", "2h", "--ledger", ledger]) == 0
    out, err = capsys.readouterr()
    old, new = keys_of(ledger)
    assert (new.hash, new.tenant, new.role) == (hash_of(out.strip()), "acme", "admin")
    assert old.replaced_by == new.id
    assert old.expires_s == pytest.approx(new.created_s + 7200)
    assert new.expires_s == pytest.approx(new.created_s + 30 * 86_400)
    assert err.startswith(f"Key {old.id} ends ")
    assert main(["keys", "rotate", old.id, "--ledger", ledger]) == 1
    assert "was rotated already" in capsys.readouterr().err
    assert main(["keys", "rotate", "nonesuch", "--ledger", ledger]) == 1
    assert capsys.readouterr().err == "economizer: There is no key 'nonesuch'.\n"


@pytest.mark.parametrize("words", [["keys"], ["keys", "create"], ["bill", "--csv", "--json"], ["keys", "list", "x"]])
def test_a_command_line_that_is_wrong_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: economizer ")
