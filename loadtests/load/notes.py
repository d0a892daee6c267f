"""What whoever reads a run's figures must know beside them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from load.run import ESTIMATE, Run
from load.statistics import percentile

_LATE_SHARE = 0.1
_INTERRUPTED = "interrupted"  # the error of such a request


def notes(run: Run) -> Iterator[str]:
    """Sentences, each of something that limits what the figures say."""
    requests = len(run.outcomes)
    if run.planned is not None and run.planned != requests:
        yield f"{requests} of {run.planned} planned requests have an outcome: the run was cut short, or is not over."
    if not requests:
        yield "There are no requests: no figure is known."
        return
    if stopped := sum(one.error == _INTERRUPTED for one in run.outcomes):
        yield f"On their way when the run was stopped, and counted as missed: {stopped} of {requests} requests."
    ttft_s = run.latency_s["ttft_s"]
    waited_s = percentile(ttft_s[~np.isnan(ttft_s)], 50.0)
    late_s = percentile(run.late_s, 99.0)
    if waited_s is not None and late_s is not None and late_s > _LATE_SHARE * waited_s:
        yield (
            f"The client was late: {late_s:.3g} s at the 99th percentile, beside a median TTFT of {waited_s:.3g} s, "
            "which holds that lateness."
        )
    told = sum(one.energy_j is not None for one in run.outcomes)
    estimated = sum(one.energy_j is not None and one.method == ESTIMATE for one in run.outcomes)
    if estimated:
        yield f"{estimated} of {told} energies are estimates by the variants' cards, not a meter's."
    if 0 < told < requests:
        yield f"{requests - told} of {requests} requests do not tell their energy, and are in no own figure of it."
