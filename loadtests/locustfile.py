"""Locust against any OpenAI-compatible server: many ways to ask, several tenants, and the load of a day.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 -u 8 -t 5m --headless --out FOLDER

docs/loadtests.md has its options and its statistics. `make loadtest` runs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic
from typing import Any

import gevent  # type: ignore[import-untyped]
import locust.stats
from load.locust_metrics import objectives, progress, summary
from load.locust_options import add_options, curve, options_of
from load.scene import Scene
from load.shapes import Curve
from load.slo import exit_code, three_digits
from load.users import FlexBatch, LongPrompt, MultiTurn, ShortChat, Streaming
from locust import LoadTestShape, events
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import PERCENTILES_TO_REPORT, StatsCSVFileWriter

__all__ = ("FlexBatch", "LongPrompt", "MultiTurn", "ShortChat", "Streaming")  # Locust runs those it finds here

_PROGRESS_S = 10.0
_SPAWNED_PER_S_MAX = 100.0  # above it Locust warns

locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]  # keys of a histogram


class OverTime(LoadTestShape):
    """As many users as a curve says at each moment of --run-time; --users is its peak."""

    abstract = True  # or Locust would use it in every run
    use_common_options = True

    def __init__(self, over_time: Curve, environment: Environment) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._curve = over_time
        self._environment = environment

    def tick(self) -> tuple[int, float] | None:
        """How many users there are now, and how quickly they come and go: within a second."""
        options = options_of(self._environment)
        peak = options.num_users or 1
        at_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        users = self._curve.users(at_s, run_s=options.run_time, peak=peak)
        return None if users is None else (users, min(float(peak), _SPAWNED_PER_S_MAX))


def begin(environment: Environment, **_: Any) -> None:
    """Refuse what cannot work before a user starts, and set up what the options ask for."""
    if isinstance(environment.runner, WorkerRunner):
        return  # it gets the options from the master, with its first users
    options = options_of(environment)
    try:
        over_time = curve(options)
        if environment.host or options.headless:
            Scene.of(options, environment.host or "")
        if options.out:
            _write_into(Path(options.out), environment)
    except (ValueError, OSError) as error:
        sys.exit(f"loadtest: {error}")
    if over_time is not None:
        environment.shape_class = OverTime(over_time, environment)
        environment.shape_class.runner = environment.runner
    if options.headless:
        gevent.spawn(_show_progress, environment)
    events.quitting.add_listener(_judge)
    events.quit.add_listener(lambda **_: _tell(environment))


def _write_into(folder: Path, environment: Environment) -> None:
    """Locust's CSV and HTML, into a folder that must be new. Locust's own --csv and --html overwrite what is there."""
    if folder.exists():
        raise FileExistsError(
            f"--out {folder} is there already: must be a folder that is not; results are never overwritten"
        )
    folder.mkdir(parents=True)
    options_of(environment).html_file = str(folder / "report.html")
    writer = StatsCSVFileWriter(environment, PERCENTILES_TO_REPORT, str(folder / "locust"), full_history=True)
    writing = gevent.spawn(writer.stats_writer)

    def finish(**_: Any) -> None:
        gevent.sleep(locust.stats.CSV_STATS_INTERVAL_SEC + 0.1)  # once more, with what came last
        writing.kill()
        writer.close_files()

    events.quit.add_listener(finish)


def _show_progress(environment: Environment) -> None:
    began_s = monotonic()
    while True:
        gevent.sleep(_PROGRESS_S)
        runner, run_s = environment.runner, options_of(environment).run_time
        if runner is not None:
            elapsed_s = monotonic() - began_s
            line = progress(environment.stats, elapsed_s=elapsed_s, run_s=run_s, users=runner.user_count)
            print(line, file=sys.stderr, flush=True)


def _judge(environment: Environment, **_: Any) -> None:
    """Set the exit code by the objectives that the options name."""
    found = _objectives(environment)
    code = exit_code(
        found,
        requests=environment.stats.total.num_requests,
        failures_judged=options_of(environment).slo_failures_max is not None,
        broken=bool(environment.runner and environment.runner.exceptions),
    )
    if code is not None:
        environment.process_exit_code = code


def _tell(environment: Environment) -> None:
    """What Locust's tables do not say, below them."""
    for line in (*summary(environment.stats), *map(str, _objectives(environment))):
        print(line)
    if not environment.stats.total.num_requests:
        print("no request was sent")
    if out := options_of(environment).out:
        print(f"written to {out}")
    sys.stdout.flush()


def _objectives(environment: Environment) -> list[Any]:
    options = options_of(environment)
    return objectives(
        environment.stats,
        ttft_ms=options.slo_ttft_p95_ms,
        tpot_ms=options.slo_tpot_p95_ms,
        e2e_ms=options.slo_e2e_p95_ms,
        failures=options.slo_failures_max,
    )


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(begin)
