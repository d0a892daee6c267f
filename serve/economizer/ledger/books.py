"""Windows and work become postings: whose joules, dollars and grams they are, down to the last unit.

A window is settled once every gateway has told what happened until its end, or has taken too long. Its energy goes to
the attempts that worked in it, to work that nobody told of, and to idleness (``energy/attribution.py``); its money and
carbon follow (``prices.py``). An attempt that failed is charged like any other until its end, and then all of that is
transferred to ``lost``. No clock, no I/O: time is an argument.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from economizer.energy.step_model import Coefficients, Episode, StepModel
from economizer.energy.types import NO_WORK, Measurement, Window
from economizer.ledger.prices import Carry, PriceList
from economizer.ledger.splitting import AttemptKey, Part, WindowSplit, split_amounts, split_window, works_of
from economizer.ledger.types import (
    NOBODY,
    UNKNOWN,
    Account,
    Amounts,
    Booking,
    Charge,
    Kind,
    Posting,
    Report,
    Settled,
    Share,
    Slice,
    Transfer,
)
from economizer.ledger.unclaimed import Unclaimed

LATE_S = 3.0  # a gateway that has not told by then is not waited for
_FORGOTTEN_S = 3600.0
_GONE_S = 8.0  # a slice whose engine sent no window for so long will not be metered any more
_GAPS_FROM = 10**9  # numbers of gaps: an engine that was only slow to tell goes on with its own
_HOUR_S = 3600


@dataclass(slots=True)
class _Told:
    """A report whose slices are not all settled yet."""

    number: int
    open: int


@dataclass(slots=True, eq=False)
class _Held:
    """A slice, and how much of it is placed in windows already."""

    slice: Slice
    gateway: str
    told: _Told
    placed: float = 0.0

    def done(self, until_s: float, now_s: float) -> float:
        """The share of the slice's work that was done by then: all of it where it lies in the future, since then the
        clock was set back."""
        one = self.slice
        if one.ended_s <= max(until_s, one.began_s) or one.ended_s - now_s > LATE_S:
            return 1.0
        return max(0.0, (until_s - one.began_s) / (one.ended_s - one.began_s))


@dataclass(slots=True)
class _Engine:
    """What is known of one engine: windows that wait, slices that wait for windows, and the price's remainders."""

    windows: deque[Window] = field(default_factory=deque)
    latest: Window | None = None
    slices: list[_Held] = field(default_factory=list)
    number: int = -1
    heard_s: float = float("-inf")
    carry: Carry = field(default_factory=Carry)
    episode: Episode = field(default_factory=Episode)
    unclaimed: Unclaimed = field(default_factory=Unclaimed)


@dataclass(slots=True)
class _Gateway:
    heard_s: float
    told_until_s: float = float("-inf")
    gone: bool = False
    number: int = -1
    reports: deque[_Told] = field(default_factory=deque)
    charges: list[Charge] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What is to be written, and what may be acknowledged once it is: reports by gateway, windows by engine."""

    settled: tuple[Settled, ...]
    transfers: tuple[Transfer, ...]
    bookings: tuple[Booking, ...]
    coefficients: dict[str, tuple[float, ...]]
    reports: Mapping[str, int]
    windows: Mapping[str, int]


class Books:
    """Everything that is not written yet. ``models`` are the step models by variant and meter, learnt on the way.

    Books that were begun lately, at ``began_s``, do not know yet which gateways there are, and settle nothing.
    """

    def __init__(
        self, prices: PriceList, models: dict[str, StepModel] | None = None, *, began_s: float = float("-inf")
    ) -> None:
        self.prices = prices
        self._began_s = began_s
        self.models = models if models is not None else {}
        self.settled: list[Settled] = []
        self.priors: Mapping[str, Coefficients] = {}
        self._engines: defaultdict[str, _Engine] = defaultdict(_Engine)
        self._gateways: dict[str, _Gateway] = {}
        self._attempts: defaultdict[AttemptKey, list[tuple[Share, Posting]]] = defaultdict(list)
        self._transfers: list[Transfer] = []
        self._bookings: list[Booking] = []
        self._learnt: set[str] = set()
        self._windows_settled: dict[str, int] = {}

    def report(self, report: Report, now_s: float) -> None:
        """Take in what a gateway tells; a report that was told before changes nothing."""
        gateway = self._gateways.setdefault(report.gateway, _Gateway(heard_s=now_s))
        gateway.heard_s, gateway.gone = now_s, False
        oldest = report.number if report.oldest is None else report.oldest
        if report.number <= gateway.number or report.number > max(oldest, gateway.number + 1):
            return  # told before; or an earlier one is to come first, which the gateway tells again
        gateway.number, gateway.told_until_s = report.number, report.now_s
        told = _Told(report.number, len(report.slices))
        gateway.reports.append(told)
        for one in report.slices:
            engine = self._engines[one.engine]
            engine.slices.append(_Held(one, report.gateway, told))
            engine.heard_s = max(engine.heard_s, now_s - _GONE_S / 2)
        self._bookings += report.bookings

    def window(self, window: Window, now_s: float) -> None:
        """Take in a metered window; one that came before changes nothing."""
        engine = self._engines[window.engine]
        engine.heard_s = now_s
        if window.number > engine.number:
            engine.number, engine.latest = window.number, window
            engine.windows.append(window)

    def recall(self, latest: Window, now_s: float) -> None:
        """The latest window that is on disk of an engine that may live, or have died while nobody kept books."""
        engine = self._engines[latest.engine]
        if engine.latest is None:
            engine.number, engine.latest, engine.heard_s = latest.number, latest, now_s

    def clock_set(self, by_s: float) -> None:
        """The clock that ``now_s`` is read from jumped: who was heard of before it was so as long ago as before."""
        self._began_s += by_s
        for engine in self._engines.values():
            engine.heard_s += by_s
        for gateway in self._gateways.values():
            gateway.heard_s += by_s

    def gone(self, now_s: float) -> list[str]:
        """Gateways that have not reported for long, each told once; they are not waited for, and later forgotten."""
        names = []
        for name, gateway in list(self._gateways.items()):
            if not gateway.gone and now_s - gateway.heard_s > LATE_S:
                gateway.gone = True
                names.append(name)
            if now_s - gateway.heard_s > _FORGOTTEN_S:
                del self._gateways[name]
        return names

    def settle(self, now_s: float) -> None:
        """Settle every window that can be settled now."""
        there = [gateway.told_until_s for gateway in self._gateways.values() if not gateway.gone]
        told_s = min(there, default=float("-inf"))
        new = now_s - self._began_s < LATE_S
        for name in list(self._engines):
            engine = self._engines[name]
            while engine.windows:
                window = engine.windows[0]
                # A window that ended in the future is of before the clock was set back: all of it was told.
                if new or (window.ended_s > told_s and abs(now_s - window.ended_s) < LATE_S):
                    break
                engine.windows.popleft()
                self._settle(engine, window, now_s)
            if now_s - engine.heard_s > _GONE_S and not engine.windows:
                self._give_up(engine)
                del self._engines[name]

    def learnt(self, variant_id: str) -> StepModel | None:
        """What has been learnt of a variant's engines by whatever meter they have; None before anything was."""
        return next((self.models[key] for key in sorted(self.models) if key.startswith(f"{variant_id}|")), None)

    def charges(self, gateway: str) -> tuple[Charge, ...]:
        """What was charged to a gateway's requests since it was last told."""
        known = self._gateways.get(gateway)
        if known is None:
            return ()
        told, known.charges = tuple(known.charges), []
        return told

    def draw(self) -> Drawn:
        """Everything that is settled and not drawn yet."""
        reports: dict[str, int] = {}
        for name, gateway in self._gateways.items():
            while gateway.reports and gateway.reports[0].open == 0:
                reports[name] = gateway.reports.popleft().number
        drawn = Drawn(
            settled=tuple(self.settled),
            transfers=tuple(self._transfers),
            bookings=tuple(self._bookings),
            coefficients={key: self.models[key].state() for key in sorted(self._learnt)},
            reports=reports,
            windows=self._windows_settled,
        )
        self.settled, self._transfers, self._bookings = [], [], []
        self._learnt, self._windows_settled = set(), {}
        return drawn

    def _settle(self, engine: _Engine, window: Window, now_s: float) -> None:
        held = list(self._placed(engine, window, now_s)) if window.state == "serving" else []
        parts = [part for _, part in held]
        model = self._model(window)
        unclaimed = NO_WORK
        if window.state == "serving":
            unclaimed = engine.unclaimed.of(window, sum((part.work for part in parts), NO_WORK))
        found = split_window(window, parts, unclaimed, model)
        settled = self._priced(engine, window, found)
        self.settled.append(settled)
        self._windows_settled[window.engine] = window.number
        if window.state == "serving" and (active_uj := window.measurement.active_uj) is not None:
            works = [*works_of(parts).values(), unclaimed]
            if engine.episode.add(model, works, window.steps, active_uj, window.measurement.seconds):
                self._learnt.add(_key(window))
        shares = {(share.request_id, share.attempt): share for share in settled.shares}
        for one, _ in held:
            if share := shares.pop((one.slice.request_id, one.slice.attempt), None):
                self._charge(one, share, window)
        for one, _ in held:
            if one.placed >= 1.0:
                self._close(one)
        engine.slices = [one for one in engine.slices if one.placed < 1.0]

    def _placed(self, engine: _Engine, window: Window, now_s: float) -> Iterator[tuple[_Held, Part]]:
        """The slices with work that was done by the window's end and is in no window yet, and that work."""
        for one in engine.slices:
            done = one.done(window.ended_s, now_s)
            due = done - one.placed
            if due > 0:
                one.placed = done
                told = one.slice
                yield (
                    one,
                    Part(
                        key=(told.request_id, told.attempt),
                        tenant=told.tenant,
                        work=told.work.scaled(due),
                        began_s=told.began_s,
                        ended_s=told.ended_s,
                    ),
                )

    def _model(self, window: Window) -> StepModel:
        key = _key(window)
        if key not in self.models:
            self.models[key] = StepModel(self.priors.get(window.variant))
        return self.models[key]

    def _priced(self, engine: _Engine, window: Window, found: WindowSplit) -> Settled:
        """The window's money and carbon laid over its energy."""
        priced = engine.carry.window(
            self.prices.rates(window.variant, window.ended_s),
            window.measurement.seconds,
            found.energies_uj,
            found.time_weights,
            (*found.keys, "unclaimed", "idle"),
        )
        unknown = (None,) * len(found.time_weights)
        columns = (found.energies_uj or unknown, priced.costs_uusd or unknown, priced.carbons_ug or unknown)
        *usages, unclaimed, idle = (
            Amounts(energy_uj=energy, cost_uusd=cost, carbon_ug=carbon)
            for energy, cost, carbon in zip(*columns, strict=True)
        )
        overhead: tuple[tuple[str, Kind, Amounts], ...] = (
            (NOBODY, "unclaimed", unclaimed),
            (NOBODY, "startup" if window.state == "starting" else "idle", idle),
        )
        active: Iterable[tuple[str, Kind, Amounts]] = (
            (tenant, "active", usage) for tenant, usage in zip(found.tenants, usages, strict=True)
        )
        postings: dict[Account, Amounts] = {}
        for tenant, kind, what in (*active, *overhead):
            if kind != "unclaimed" or any((what.energy_uj, what.cost_uusd, what.carbon_ug)):
                account = _account(window, tenant, kind)
                postings[account] = postings.get(account, UNKNOWN) + what
        idles = split_amounts(idle, found.weights[:-1])
        return Settled(
            window=window,
            total=sum(postings.values(), UNKNOWN),
            postings=tuple(Posting(account=account, amounts=what) for account, what in postings.items()),
            shares=tuple(
                Share(
                    request_id=request_id,
                    attempt=attempt,
                    usage=usage,
                    idle=idle_part,
                    variance_uj2=variance,
                    method=window.measurement.method,
                )
                for (request_id, attempt), usage, idle_part, variance in zip(
                    found.keys, usages, idles, found.variances, strict=True
                )
            ),
        )

    def _charge(self, held: _Held, share: Share, window: Window) -> None:
        one = held.slice
        posting = Posting(account=_account(window, one.tenant, "active"), amounts=share.usage)
        self._attempts[one.request_id, one.attempt].append((share, posting))
        self._tell(held, share.usage, share.idle, share.variance_uj2, share.method, final=False)

    def _close(self, held: _Held) -> None:
        """A slice is placed whole; where it was its attempt's last, nothing more comes of the attempt."""
        held.told.open -= 1
        if not held.slice.last:
            return
        charged = self._attempts.pop((held.slice.request_id, held.slice.attempt), [])
        if held.slice.lost and charged:
            self._transfer(held, charged)
        self._tell(held, UNKNOWN, UNKNOWN, 0.0, "", final=True)

    def _transfer(self, held: _Held, charged: list[tuple[Share, Posting]]) -> None:
        postings: list[Posting] = []
        for share, posting in charged:
            lost = replace(posting.account, tenant=NOBODY, kind="lost")
            postings += (
                Posting(account=posting.account, amounts=-posting.amounts),
                Posting(account=lost, amounts=posting.amounts),
            )
            self._tell(held, -share.usage, -share.idle, -share.variance_uj2, share.method, final=False)
        one = held.slice
        shares = tuple(share for share, _ in charged)
        self._transfers.append(
            Transfer(request_id=one.request_id, attempt=one.attempt, shares=shares, postings=tuple(postings))
        )

    def _tell(
        self, held: _Held, usage: Amounts, idle: Amounts, variance_uj2: float, method: str, *, final: bool
    ) -> None:
        gateway = self._gateways.get(held.gateway)
        if gateway is not None:
            gateway.charges.append(
                Charge(
                    request_id=held.slice.request_id,
                    usage=usage,
                    idle=idle,
                    variance_uj2=variance_uj2,
                    method=method,
                    final=final,
                )
            )

    def _give_up(self, engine: _Engine) -> None:
        """No more windows come of this engine: what was not metered stays uncharged, and the books show it."""
        if engine.latest is not None and not engine.latest.last:
            self.settled.append(_gap(engine.latest))
        for held in engine.slices:
            self._close(held)
        engine.slices = []


def _gap(latest: Window) -> Settled:
    """What the books have of an engine that ended without a last window."""
    note = "its windows end here without the last one: what it used after is not known"
    window = replace(
        latest,
        number=_GAPS_FROM + latest.number,
        began_s=latest.ended_s,
        state="gap",
        measurement=Measurement(seconds=0.0, energy_uj=None, method="none", note=note),
        steps=None,
        prefill_tokens=None,
        decode_tokens=None,
        last=True,
    )
    return Settled(window=window, total=UNKNOWN, postings=(), shares=())


def _account(window: Window, tenant: str, kind: Kind) -> Account:
    """A window belongs to the hour that it ended in."""
    family, _, variant = window.variant.partition("@")
    return Account(hour=int(window.ended_s // _HOUR_S), tenant=tenant, family=family, variant=variant, kind=kind)


def _key(window: Window) -> str:
    """What a step model is learnt for: a variant, as one kind of meter sees it."""
    return f"{window.variant}|{window.measurement.method}"
