from __future__ import annotations

import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import report
from load import results
from load.run import Run
from load.types import Message, Outcome, Planned, Terms

SCRIPT = Path(report.__file__)
SECRET = "the boiler's own secret"
TENANT = "<script>alert('$1$')</script>"


class Page(HTMLParser):
    """What a browser would fetch or run, and what a reader who sees no pictures is told."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.alts: list[str] = []
        self.svgs: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "action", "srcset", "poster") and not (value or "").startswith("#"):
                self.fetched.append(value or "")
            if name == "alt":
                self.alts.append(value or "")
        if tag == "img":
            self.svgs.append(b64decode((self.fetched[-1]).partition(",")[2]).decode())


def planned(count: int) -> list[Planned]:
    return [
        Planned(
            number=number,
            due_s=number / 4,
            kind=("chat", "long")[number % 2],
            model="boiler",
            messages=(Message(role="user", content=SECRET),),
            output_tokens=5,
            tenant=("acme", TENANT)[number % 2],
            terms=Terms(ttft_s_max=1.0) if number % 3 else Terms(),
        )
        for number in range(count)
    ]


def outcomes(plan: list[Planned], energy_j: float | None) -> list[Outcome]:
    """Every tenth fails; a first token after 0.4 to 0.8 s, and 4 more in 0.4 s; energy on every answer where known."""
    return [
        Outcome(
            number=one.number,
            kind=one.kind,
            model=one.model,
            tenant=one.tenant,
            terms=one.terms,
            due_s=one.due_s,
            sent_s=one.due_s,
            ended_s=one.due_s + 0.8 + one.number % 5 / 10,
            **answer(one, energy_j) if one.number % 10 else {"status": 503, "error": "not_ready"},
        )
        for one in plan
    ]


def answer(one: Planned, energy_j: float | None) -> dict[str, Any]:
    return {
        "first_s": one.due_s + 0.4 + one.number % 5 / 10,
        "status": 200,
        "output_tokens": 5,
        "variant": ("int8", "bf16")[one.number % 4 == 0],
        "energy_j": energy_j,
        "method": "rapl",
        "predicted_ttft_s": 0.5,
        "predicted_energy_j": 2.0,
    }


def write_run(folder: Path, count: int, energy_j: float | None = 2.0) -> Path:
    plan = planned(count)
    folder.mkdir()
    header = results.header("replay", plan, settings={"speed": 10}, facts={})
    with results.Writer(folder / results.JSONL, header) as writer:
        for one in outcomes(plan, energy_j):
            writer.write(one)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one plan, the second with half the energy, and their report by the script."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "full", 120, 4.0)
    (folder / "full" / report.METER).write_text(
        '{"source": "a wall meter", "usage": {"energy_j": 500}, "allocation": {"energy_j": 1000, "cost_usd": 0.01}}'
    )
    write_run(folder / "ours", 120)
    command = [sys.executable, str(SCRIPT), str(folder / "full"), str(folder / "ours" / results.JSONL)]
    ran = subprocess.run(
        [*command, "--out", str(folder / "report")], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [str(folder / "report" / name) for name in (report.HTML, report.JSON)]
    return folder


def test_the_json_of_two_runs_has_their_figures_and_ratios(both: Path) -> None:
    found = msgspec.json.decode((both / "report" / report.JSON).read_bytes())
    first, second = found["runs"]
    assert (first["name"], second["name"]) == ("full", "ours")
    assert first["about"]["settings"] == {"speed": 10}
    assert first["figures"]["slo"]["value"] == pytest.approx(0.9)
    assert first["figures"]["slo"]["samples"] == 120
    assert first["figures"]["energy_j_own"]["value"] == 4.0
    assert first["figures"]["goodput_per_kj_allocation"]["value"] == pytest.approx(108)
    assert first["figures"]["goodput_per_usd_allocation"]["value"] == pytest.approx(10_800)
    assert first["errors"] == [{"status": 503, "error": "not_ready", "requests": 12}]
    assert second["figures"]["goodput_per_kj_allocation"]["value"] is None
    assert found["comparison"]["same_plan"] is True
    assert found["comparison"]["same_hash"] is True
    assert found["comparison"]["figures"]["energy_j_own"]["ratio"] == 0.5
    assert found["comparison"]["paired"]["energy_j"]["median_ratio"]["value"] == 0.5
    assert found["comparison"]["met"] == {"both": 108, "first alone": 0, "second alone": 0, "neither": 12}


def test_every_figure_in_the_json_states_its_unit_basis_and_samples(both: Path) -> None:
    found = msgspec.json.decode((both / "report" / report.JSON).read_bytes())
    figures = list(walk(found))
    assert len(figures) > 200
    assert all(one["unit"] and one["basis"] and one["samples"] >= 0 for one in figures)


def walk(found: Any) -> Any:
    if isinstance(found, dict):
        if "value" in found:
            yield found
        for inner in found.values():
            yield from walk(inner)
    elif isinstance(found, list):
        for inner in found:
            yield from walk(inner)


def test_the_page_fetches_and_runs_nothing_and_every_picture_has_an_alternative_text(both: Path) -> None:
    page = Page((both / "report" / report.HTML).read_text(encoding="utf-8"))
    assert len(page.svgs) == 7
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.fetched)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert len(page.alts) == len(page.svgs)
    assert all(len(alt) > 40 for alt in page.alts)
    for svg in page.svgs:
        assert not re.search(r"https?:", re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg))


def test_the_page_says_in_words_what_is_known_and_what_is_not(both: Path) -> None:
    page = (both / "report" / report.HTML).read_text(encoding="utf-8")
    assert "Both runs were to send the same requests at the same times" in page
    assert "goodput per kilojoule, allocation</th><td>requests/kJ</td><td>108" in page
    assert "goodput per dollar, allocation</th><td>requests/USD</td><td>10,800" in page
    assert "not known <small>n=0</small>" in page
    assert "a wall meter" in page
    assert "&lt;script&gt;alert(&#39;$1$&#39;)&lt;/script&gt;" in page


def test_no_prompt_is_in_a_report(both: Path) -> None:
    for name in (report.HTML, report.JSON):
        assert "secret" not in (both / "report" / name).read_text(encoding="utf-8")


def test_a_report_that_is_there_is_not_overwritten(both: Path) -> None:
    before = (both / "report" / report.JSON).read_bytes()
    with pytest.raises(SystemExit, match=r"report.html is there already: name another folder"):
        report.main([str(both / "full"), "--out", str(both / "report")])
    assert (both / "report" / report.JSON).read_bytes() == before


@pytest.mark.parametrize(("count", "energy_j"), [(0, 2.0), (1, 2.0), (120, 2.0), (120, None)])
def test_runs_with_little_or_nothing_in_them_have_a_page(tmp_path: Path, count: int, energy_j: float | None) -> None:
    run = Run("small", outcomes(planned(count), energy_j))
    report.write(report.make([run]), tmp_path)
    page = (tmp_path / report.HTML).read_text(encoding="utf-8")
    assert f"{count} requests in" in page
    assert ("There are no requests: no figure is known." in page) == (count == 0)
    assert not re.search(r"\bnan\b", page)
    found = msgspec.json.decode((tmp_path / report.JSON).read_bytes())["runs"][0]
    assert (found["figures"]["energy_j_own"]["value"] is None) == (count < 2 or energy_j is None)


def test_a_meters_total_by_option_is_that_of_all_with_idle(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path / "run", 20), "run", energy_j=500.0)
    assert report.make([run]).runs[0].figures["goodput_per_kj_allocation"].value == pytest.approx(36)
    assert report.make([run]).runs[0].figures["goodput_per_kj_usage"].value is None


def test_a_meter_is_given_once_and_right(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    meter = run / report.METER
    meter.write_text('{"usage": {"energy_j": 0}}')
    with pytest.raises(
        ValueError, match=r"meter.json is not what a meter read: energy_j is 0.0: must be a number above 0"
    ):
        report.read(run, "run")
    meter.write_text('{"usage": {"joules": 1}}')
    with pytest.raises(ValueError, match="joules"):
        report.read(run, "run")
    meter.write_text("{}")
    with pytest.raises(ValueError, match="must be one of them"):
        report.read(run, "run", cost_usd=1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "--energy-j", "1", "2"], "--energy-j has 2 values: must be one for each of the 1 runs"),
        (["a", "b", "c"], "3 runs are given: must be 1 or 2"),
    ],
)
def test_options_that_do_not_fit_the_runs_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main([*arguments, "--out", str(tmp_path)])
    assert said in capsys.readouterr().err


def test_a_run_that_is_not_there_is_said_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"report.py: .*nowhere"):
        report.main([str(tmp_path / "nowhere"), "--out", str(tmp_path)])


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart(tmp_path: Path) -> None:
    runs = [tmp_path / "monday" / "full", tmp_path / "tuesday" / "full" / results.JSONL]
    assert report.names(runs) == ["monday/full", "tuesday/full"]
    assert report.names(runs[:1]) == ["full"]
    assert report.names([runs[0], runs[0]]) == ["full (1)", "full (2)"]
