"""What the runs in a folder came to, as far as they go: tables, and a line for machines."""

from __future__ import annotations

from typing import Any

from load import results
from load.delivered import Qualities, delivered
from load.savings import Side, paired
from load.savings_runs import FULL, OURS, Setup, mainly, step_name
from load.savings_tables import Compared, Step, comparison, result, steps, verdict
from load.study import of


class Found:
    """Reads a setup's folder."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._contest = setup.contest
        self._folder = setup.folder
        self._options = setup.options
        self._machine = setup.machine

    def compared(self) -> list[Compared]:
        """Every mix and policy of which there is a round of both fleets."""
        runs = self._folder.runs()
        qualities = self._folder.kept("quality.json", Qualities) or self._contest.published(self._contest.variants)
        found = []
        for name in self._setup.mixes:
            for policy in self._options.policies:
                full, ours = paired(of(runs, mix=name, fleet=FULL), of(runs, mix=name, fleet=OURS, policy=policy))
                if not full:
                    continue
                sides = [Side(runs=tuple(side), machine=self._machine) for side in (full, ours)]
                found.append(
                    Compared(
                        mix=name,
                        policy=policy,
                        full=sides[0],
                        ours=sides[1],
                        delivered=delivered(sides[1].outcomes, qualities),
                        quality_source=qualities.source,
                    )
                )
        return found

    def chain(self, each: Compared) -> list[Step]:
        """From the full model alone to ours, one change after the other, all on the requests of the first round."""
        runs = self._folder.runs()
        engines, variant = mainly(each.ours)
        sides = {
            name: Side(runs=tuple(found), machine=self._machine)
            for name, found in (
                ("full", of(runs, round=1, mix=each.mix, fleet=FULL)),
                ("fewer", of(runs, fleet=step_name(self._contest.full, engines))),
                ("variant", of(runs, fleet=step_name(variant, engines))),
                ("ours", of(runs, round=1, mix=each.mix, policy=each.policy, fleet=OURS)),
            )
            if found
        }
        full, count = self._contest.full, self._contest.engines
        told = {
            "full": (f"{full} x {count}, round robin", ""),
            "fewer": (f"{full} x {engines}", "fewer engines, fuller batches"),
            "variant": (f"{variant} x {engines}", "the variant"),
            "ours": (f"Economizer, {each.policy}", "the gateway, and who answers what"),
        }
        if variant == full:
            sides.pop("variant", None)
        return [Step(name=told[key][0], change=told[key][1], side=side) for key, side in sides.items()]

    def report(self) -> str:
        """All tables, as far as there are runs for them."""
        found = self.compared()
        parts = [self._head()]
        for name in self._setup.mixes:
            pairs = [each for each in found if each.mix == name]
            if pairs:
                parts += [f"## {name}", comparison(pairs), "\n".join(f"- {verdict(each)}" for each in pairs)]
                chains = [(each.policy, self.chain(each)) for each in pairs if each.ours.answers.any()]
                parts += [f"Where it comes from, {policy}:\n\n{steps(chain)}" for policy, chain in chains]
        return "\n\n".join(parts)

    def last_line(self, whole: bool) -> dict[str, Any]:
        """The result for machines."""
        known = self._setup.capacity
        return {
            "machine": results.header("bench_savings", (), settings={}, facts={}).machine,
            "complete": whole,
            "settings": self._setup.settings(),
            "capacity_rps": None if known is None else round(known.capacity_rps, 4),
            "results": [result(each) for each in self.compared()],
        }

    def _head(self) -> str:
        known, here = self._setup.capacity, results.header("bench_savings", (), settings={}, facts={})
        lines = [
            f"Machine: {here.machine}",
            f"Commit: {here.commit}, {here.began[:10]}",
            f"Meter: CPU time, {self._machine.active_w:g} W a working core and {self._machine.idle_w:g} W a waiting "
            f"one ({self._machine.source}); {self._machine.usd_per_core_hour:g} USD a core-hour",
            f"Requests: {self._setup.trace}, lengths times {self._options.length_scale:g}, "
            f"cut to {self._options.context} tokens",
        ]
        if known is not None:
            lines.append(
                f"Load: the full model on {self._contest.engines} engines answers {known.capacity_rps:.3g} requests/s "
                f"when full; {known.share:.0%} of it are offered ({known.load.requests_per_s:.3g} requests/s, the "
                f"trace at {known.speed:.3g} times its speed), for {known.load.seconds / 60:g} minutes a run"
            )
        return "\n".join(f"- {line}" for line in lines)
