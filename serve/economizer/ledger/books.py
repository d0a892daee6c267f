"""Windows and work become postings: whose joules, dollars and grams they are, down to the last unit.

A window is settled once every gateway has told what happened until its end, or has taken too long. Its energy goes to
the attempts that worked in it, to work that nobody told of, and to idleness (``energy/attribution.py``); its money and
carbon follow (``settling.py``). An attempt that failed is charged like any other until its end, and then all of that is
transferred to ``lost``. No clock, no I/O: time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from economizer.energy.step_model import Coefficients, Episode, StepModel
from economizer.energy.types import NO_WORK, Measurement, Window
from economizer.ledger.gateways import FORGOTTEN_S, LATE_S, Gateways, Told
from economizer.ledger.prices import Carry, PriceList
from economizer.ledger.settling import account_of, settled_by
from economizer.ledger.splitting import AttemptKey, Part, split_window, works_of
from economizer.ledger.types import (
    GAPS_FROM,
    UNKNOWN,
    Amounts,
    Booking,
    Moved,
    Posting,
    Report,
    Settled,
    Share,
    Slice,
    Transfer,
    postings_of,
)
from economizer.ledger.unclaimed import Unclaimed

_RECALL_S = 10.0  # after which books go on without knowing what is on disk
_GONE_S = 8.0  # a slice whose engine sent no window for so long will not be metered any more
_NEVER = float("-inf")


@dataclass(slots=True, eq=False)
class _Held:
    """A slice, and how much of it is placed in windows already."""

    slice: Slice
    gateway: str
    told: Told
    placed: float = 0.0

    @property
    def key(self) -> AttemptKey:
        """Whose it is."""
        return self.slice.request_id, self.slice.attempt

    def ahead(self, now_s: float) -> bool:
        """It lies in the future: it is of before the clock was set back."""
        return self.slice.ended_s - now_s > LATE_S

    def done(self, until_s: float) -> float:
        """The share of the slice's work that was done by then."""
        one = self.slice
        if one.ended_s <= until_s:
            return 1.0
        return (until_s - one.began_s) / (one.ended_s - one.began_s) if until_s > one.began_s else 0.0


@dataclass(slots=True)
class _Engine:
    """What is known of one engine: windows that wait, slices that wait for windows, and the price's remainders.

    Work until ``on_disk_s`` is in windows that an earlier bookkeeper settled; None while that may yet be recalled.
    """

    windows: deque[Window] = field(default_factory=deque)
    latest: Window | None = None
    slices: list[_Held] = field(default_factory=list)
    number: int = -1
    heard_s: float = _NEVER
    on_disk_s: float | None = None
    carry: Carry = field(default_factory=Carry)
    episode: Episode = field(default_factory=Episode)
    unclaimed: Unclaimed = field(default_factory=Unclaimed)


@dataclass(slots=True)
class _Attempt:
    """What windows have charged to an attempt that has not ended."""

    charged_s: float
    parts: list[Moved] = field(default_factory=list)


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

    Books that were begun lately, at ``began_s``, do not know yet which gateways there are, nor what is on disk, and
    settle nothing: for LATE_S, and until they recall what is on disk, though not for ever.
    """

    def __init__(
        self, prices: PriceList, models: dict[str, StepModel] | None = None, *, began_s: float = _NEVER
    ) -> None:
        self.prices = prices
        self._began_s = began_s
        self._recalled = False
        self.models = models if models is not None else {}
        self.settled: list[Settled] = []
        self.priors: Mapping[str, Coefficients] = {}
        self._engines: defaultdict[str, _Engine] = defaultdict(_Engine)
        self.gateways = Gateways()
        self._attempts: OrderedDict[AttemptKey, _Attempt] = OrderedDict()  # the longest not charged first
        self._transfers: list[Transfer] = []
        self._bookings: list[Booking] = []
        self._learnt: set[str] = set()
        self._windows_settled: dict[str, int] = {}

    def report(self, report: Report, now_s: float) -> None:
        """Take in what a gateway tells; a report that was told before changes nothing."""
        self.gateways.heard(report.gateway, now_s)
        told = self.gateways.take(report)
        if told is None:
            return
        for one in report.slices:
            engine = self._engines[one.engine]
            held = _Held(one, report.gateway, told)
            held.placed = held.done(engine.on_disk_s or _NEVER)
            engine.slices.append(held)
            if engine.heard_s == _NEVER:
                engine.heard_s = now_s
        self._bookings += report.bookings

    def window(self, window: Window, now_s: float) -> None:
        """Take in a metered window; one that came before changes nothing."""
        self.heard_engine(window.engine, now_s)
        engine = self._engines[window.engine]
        if window.number > engine.number:
            engine.number, engine.latest = window.number, window
            engine.windows.append(window)

    def heard_engine(self, engine: str, now_s: float) -> None:
        """It lives, whatever becomes of what it tells."""
        self._engines[engine].heard_s = now_s

    def recall(self, on_disk: Iterable[Window], now_s: float) -> None:
        """The latest windows on disk, of engines that may live, or have died while nobody kept books.

        An engine's windows up to that one were settled before, and are not settled again; nor is the work in them.
        """
        self._recalled = True
        for latest in on_disk:
            engine = self._engines[latest.engine]
            engine.heard_s = now_s
            engine.windows = deque(window for window in engine.windows if window.number > latest.number)
            if latest.number > engine.number:
                engine.number, engine.latest = latest.number, latest
            self._windows_settled.setdefault(latest.engine, latest.number)
            was_set_back = latest.ended_s - now_s > LATE_S
            if engine.on_disk_s is None and latest.state == "serving" and not was_set_back:
                engine.on_disk_s = latest.ended_s
                for held in engine.slices:
                    held.placed = held.done(latest.ended_s)

    def nobody_was_silent(self, by_s: float) -> None:
        """The clock that ``now_s`` is read from jumped, or nobody could be heard for so long: who was heard of before
        was so as long ago as before."""
        self._began_s += by_s
        for engine in self._engines.values():
            engine.heard_s += by_s
            if engine.on_disk_s is not None:
                engine.on_disk_s += by_s
        self.gateways.nobody_was_silent(by_s)
        for attempt in self._attempts.values():
            attempt.charged_s += by_s

    @property
    def engines(self) -> Collection[str]:
        """Those that are not forgotten."""
        return self._engines.keys()

    def settle(self, now_s: float) -> list[Posting]:
        """Settle every window that can be settled now; returns what was posted, transfers included."""
        if self._is_new(now_s):
            return []
        before = len(self.settled), len(self._transfers)
        told_s = self.gateways.told_until_s(now_s)
        for name in list(self._engines):
            engine = self._engines[name]
            while engine.windows:
                window = engine.windows[0]
                # A window that ended in the future is of before the clock was set back: all of it was told.
                if window.ended_s > told_s and abs(now_s - window.ended_s) < LATE_S:
                    break
                engine.windows.popleft()
                self._settle(engine, window, now_s)
            if now_s - engine.heard_s > _GONE_S and not engine.windows:
                self._give_up(engine, now_s)
            if now_s - engine.heard_s > FORGOTTEN_S and not engine.slices:
                del self._engines[name]
        self.gateways.hand_out()
        while self._attempts and now_s - next(iter(self._attempts.values())).charged_s > FORGOTTEN_S:
            self._attempts.popitem(last=False)  # its gateway died, and nobody tells of its end
        return postings_of(self.settled[before[0] :], self._transfers[before[1] :])

    def waiting(self) -> list[Posting]:
        """What is posted, and not drawn yet."""
        return postings_of(self.settled, self._transfers)

    def _is_new(self, now_s: float) -> bool:
        return now_s - self._began_s < (LATE_S if self._recalled else _RECALL_S)

    def learnt(self, variant_id: str) -> StepModel | None:
        """What has been learnt of a variant's engines by whatever meter they have; None before anything was."""
        return next((self.models[key] for key in sorted(self.models) if key.startswith(f"{variant_id}|")), None)

    def draw(self) -> Drawn:
        """Everything that is settled and not drawn yet."""
        drawn = Drawn(
            settled=tuple(self.settled),
            transfers=tuple(self._transfers),
            bookings=tuple(self._bookings),
            coefficients={key: self.models[key].state() for key in sorted(self._learnt)},
            reports=self.gateways.settled(),
            windows=self._windows_settled,
        )
        self.settled, self._transfers, self._bookings = [], [], []
        self._learnt, self._windows_settled = set(), {}
        return drawn

    def _settle(self, engine: _Engine, window: Window, now_s: float) -> None:
        if engine.on_disk_s is None:
            engine.on_disk_s = _NEVER
        held = list(self._placed(engine, window, now_s)) if window.state == "serving" else []
        parts = [part for _, part in held]
        model = self._model(window)
        unclaimed = NO_WORK
        if window.state == "serving":
            unclaimed = engine.unclaimed.of(window, sum((part.work for part in parts), NO_WORK))
        found = split_window(window, parts, unclaimed, model)
        rates = self.prices.rates(window.variant, window.ended_s)
        settled = settled_by(window, found, rates, engine.carry)
        self.settled.append(settled)
        self._windows_settled[window.engine] = window.number
        if window.state == "serving" and (active_uj := window.measurement.active_uj) is not None:
            works = [*works_of(parts).values(), unclaimed]
            if engine.episode.add(model, works, window.steps, active_uj, window.measurement.seconds):
                self._learnt.add(_key(window))
        shares = {(share.request_id, share.attempt): share for share in settled.shares}
        for one, _ in held:
            if share := shares.pop(one.key, None):
                self._charge(one, share, window, now_s)
        if window.state != "serving":
            _drop(engine, window.ended_s - _GONE_S, now_s)
        self._close_placed(engine)

    def _placed(self, engine: _Engine, window: Window, now_s: float) -> Iterator[tuple[_Held, Part]]:
        """The slices with work that was done by the window's end and is in no window yet, and that work."""
        for one in engine.slices:
            done = 1.0 if one.ahead(now_s) else one.done(window.ended_s)
            due = done - one.placed
            if due > 0:
                one.placed = done
                told = one.slice
                yield (
                    one,
                    Part(
                        key=one.key,
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

    def _charge(self, held: _Held, share: Share, window: Window, now_s: float) -> None:
        one = held.slice
        attempt = self._attempts.setdefault(held.key, _Attempt(now_s))
        attempt.charged_s = now_s
        self._attempts.move_to_end(held.key)
        account = account_of(window, one.tenant, "active")
        attempt.parts.append(Moved(engine=window.engine, number=window.number, account=account, share=share))
        self._tell(held, share.usage, share.idle, share.variance_uj2, share.method, final=False)

    def _close_placed(self, engine: _Engine) -> None:
        """Slices that are placed whole are done with; an attempt's last one when all before it are, some of which end
        later than it where its gateway's clock was set back."""
        waiting = {held.key for held in engine.slices if held.placed < 1.0}
        kept = []
        for held in engine.slices:
            if held.placed < 1.0 or (held.slice.last and held.key in waiting):
                kept.append(held)
            else:
                self._close(held)
        engine.slices = kept

    def _close(self, held: _Held) -> None:
        """A slice is placed whole; where it was its attempt's last, nothing more comes of the attempt."""
        held.told.open -= 1
        if not held.slice.last:
            return
        attempt = self._attempts.pop(held.key, None)
        if held.slice.lost and attempt is not None:
            self._transfer(held, attempt.parts)
        self._tell(held, UNKNOWN, UNKNOWN, 0.0, "", final=True)

    def _transfer(self, held: _Held, parts: list[Moved]) -> None:
        for share in (part.share for part in parts):
            self._tell(held, -share.usage, -share.idle, -share.variance_uj2, share.method, final=False)
        one = held.slice
        self._transfers.append(Transfer(request_id=one.request_id, attempt=one.attempt, parts=tuple(parts)))

    def _tell(
        self, held: _Held, usage: Amounts, idle: Amounts, variance_uj2: float, method: str, *, final: bool
    ) -> None:
        self.gateways.tell(held.gateway, held.key, usage, idle, variance_uj2, method, final)

    def _give_up(self, engine: _Engine, now_s: float) -> None:
        """No more windows come of this engine: what was not metered stays uncharged, and the books show it. Its number
        stays known, in case that it was only slow and tells its windows again."""
        if engine.latest is not None and not engine.latest.last:
            self.settled.append(_gap(engine.latest))
        engine.latest = None
        _drop(engine, now_s - _GONE_S, now_s)
        self._close_placed(engine)


def _drop(engine: _Engine, before_s: float, now_s: float) -> None:
    """Slices that ended before, or before the clock was set back, are placed in no window any more."""
    for held in engine.slices:
        if held.slice.ended_s < before_s or held.ahead(now_s):
            held.placed = 1.0


def _gap(latest: Window) -> Settled:
    """What the books have of an engine that ended without a last window."""
    note = "its windows end here without the last one: what it used after is not known"
    window = replace(
        latest,
        number=GAPS_FROM + latest.number,
        began_s=latest.ended_s,
        state="gap",
        measurement=Measurement(seconds=0.0, energy_uj=None, method="none", note=note),
        steps=None,
        prefill_tokens=None,
        decode_tokens=None,
    )
    return Settled(window=window, total=UNKNOWN, postings=(), shares=())


def _key(window: Window) -> str:
    """What a step model is learnt for: a variant, as one kind of meter sees it."""
    return f"{window.variant}|{window.measurement.method}"
