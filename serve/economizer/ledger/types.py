"""The words of the books. Every amount is an integer, so that sums are exact: microjoules, micro-dollars, micrograms.

::

    Window (a meter's) + Work (the gateways') + Price --books.py--> Settled --Batch--> Store

A window's joules, dollars and grams are split once, into postings that add up to them exactly; everything that is ever
read out is a sum of postings.

What there is one of for every request is left out of the garbage collector's rounds (``gc=False``): it can be in no
cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from economizer.energy.types import Window, Work

# What a posting is for. ``active``: charged to the request that caused it. The others are overhead of the fleet:
# ``idle`` an engine that stood ready, ``startup`` one that came up, ``lost`` work of attempts that failed, whose answer
# nobody got, ``unclaimed`` work that no gateway told of (a gateway was killed, or somebody called an engine directly).
Kind = Literal["active", "idle", "startup", "lost", "unclaimed"]
KINDS: tuple[Kind, ...] = ("active", "idle", "startup", "lost", "unclaimed")

ANONYMOUS = "anonymous"  # the tenant of requests without a key, where those are let in
NOBODY = ""  # the tenant of what no request caused
GAPS_FROM = 10**9  # numbers of gaps: one after the engine's window 7 is this and 7, for the engine may yet go on


class Amounts(Struct, frozen=True, kw_only=True, gc=False):
    """Energy in microjoules, money in micro-dollars, carbon in micrograms of CO2 equivalent. None is unknown."""

    energy_uj: int | None = None
    cost_uusd: int | None = None
    carbon_ug: int | None = None

    def __add__(self, other: Amounts) -> Amounts:
        """Sums of what is known: None only where both are."""
        return Amounts(
            energy_uj=plus(self.energy_uj, other.energy_uj),
            cost_uusd=plus(self.cost_uusd, other.cost_uusd),
            carbon_ug=plus(self.carbon_ug, other.carbon_ug),
        )

    def __neg__(self) -> Amounts:
        return Amounts(
            energy_uj=None if self.energy_uj is None else -self.energy_uj,
            cost_uusd=None if self.cost_uusd is None else -self.cost_uusd,
            carbon_ug=None if self.carbon_ug is None else -self.carbon_ug,
        )


def plus(one: int | None, other: int | None) -> int | None:
    """The sum of what is known."""
    if one is None:
        return other
    return one if other is None else one + other


UNKNOWN = Amounts()


class Account(Struct, frozen=True, kw_only=True, gc=False):
    """What amounts are added up by. ``hour`` counts hours since the epoch (UTC); ``tenant`` is NOBODY for overhead."""

    hour: int
    tenant: str
    family: str
    variant: str
    kind: Kind


class Posting(Struct, frozen=True, kw_only=True, gc=False):
    """Amounts put to one account. Negative amounts take back what an earlier posting put there."""

    account: Account
    amounts: Amounts


class Slice(Struct, frozen=True, kw_only=True, gc=False):
    """What a gateway saw of one request's attempt at one engine in a span: the work it made the engine do.

    ``attempt`` counts a request's attempts from 0. The span is in seconds since the epoch. ``last`` says that the
    attempt ended with it, ``lost`` that it failed, so that nobody is charged for it.
    """

    request_id: str
    attempt: int
    tenant: str
    family: str
    variant: str
    engine: str
    began_s: float
    ended_s: float
    work: Work
    last: bool = False
    lost: bool = False


class Report(Struct, frozen=True, kw_only=True):
    """What a gateway tells the bookkeeper some times a second. ``number`` counts up; one that is not acknowledged is
    sent again. All that happened until ``now_s`` (seconds since the epoch) is in this report or in earlier ones.
    ``oldest`` is the first number that is not acknowledged (None: this one): a bookkeeper that is new wants that first,
    since numbers are acknowledged in order. ``released`` are requests that were admitted and never sent."""

    gateway: str
    number: int
    now_s: float
    slices: tuple[Slice, ...] = ()
    bookings: tuple[Booking, ...] = ()
    released: tuple[str, ...] = ()
    oldest: int | None = None


class Charge(Struct, frozen=True, kw_only=True, gc=False):
    """What was charged to a request since the gateway was last told. ``final`` says that nothing more comes of one of
    its attempts."""

    request_id: str
    usage: Amounts
    idle: Amounts
    variance_uj2: float
    method: str
    final: bool


class Share(Struct, frozen=True, kw_only=True, gc=False):
    """A request's part of one settled window.

    ``usage`` is what it caused (active energy, and the engine's time while it was in use); ``idle`` is its part of what
    the window cost beyond, so that ``usage + idle`` is the basis ``allocation``. ``variance_uj2`` is the variance of
    ``usage.energy_uj``.
    """

    request_id: str
    attempt: int
    usage: Amounts
    idle: Amounts
    variance_uj2: float = 0.0
    method: str


class Settled(Struct, frozen=True, kw_only=True):
    """A window whose amounts are split: ``total`` is the sum of its postings exactly."""

    window: Window
    total: Amounts
    postings: tuple[Posting, ...]
    shares: tuple[Share, ...]


class Counterfactual(Struct, frozen=True, kw_only=True, gc=False):
    """What the request would have taken on the family's full model at the same load, with a 95 % interval."""

    variant: str
    amounts: Amounts
    low_uj: int | None = None
    high_uj: int | None = None
    low_uusd: int | None = None
    high_uusd: int | None = None


class Booking(Struct, frozen=True, kw_only=True, gc=False):
    """One request, written down when it has ended. Times in seconds; unknown is None.

    ``key_id`` names the key, never the key itself. ``variant`` and ``engine`` are those of the last attempt, empty
    where nothing was attempted. ``outcome`` is ok, engine_error, client_closed, refused or failed. ``estimate`` is what
    the cards said. ``predicted_*`` are medians from before it was sent. ``arm`` is how the savings' hold-out had it:
    ``full`` (really sent to the full model for comparison), ``routed`` (eligible, and routed), None (not eligible).
    ``degraded`` says which budget's soft end changed the choice.
    """

    request_id: str
    tenant: str
    key_id: str = ""
    family: str
    variant: str = ""
    engine: str = ""
    endpoint: str
    stream: bool = False
    outcome: str
    status: int | None = None
    error: str | None = None
    attempts: int = 0
    began_s: float
    ended_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    batch: float | None = None
    predicted_ttft_s: float | None = None
    predicted_e2e_s: float | None = None
    predicted_energy_uj: int | None = None
    predicted_cost_uusd: int | None = None
    estimate: Amounts = UNKNOWN
    full: Counterfactual | None = None
    arm: Literal["full", "routed"] | None = None
    degraded: str | None = None
    policy: str = ""
    terms: str = "{}"
    refusals: str = "{}"


class Moved(Struct, frozen=True, kw_only=True, gc=False):
    """What one window, known by its engine and number, charged to an attempt: its share, put to ``account``."""

    engine: str
    number: int
    account: Account
    share: Share

    @property
    def postings(self) -> tuple[Posting, Posting]:
        """Out of the account, and into ``lost``."""
        lost = replace(self.account, tenant=NOBODY, kind="lost")
        return (
            Posting(account=self.account, amounts=-self.share.usage),
            Posting(account=lost, amounts=self.share.usage),
        )


class Transfer(Struct, frozen=True, kw_only=True):
    """What an attempt that failed had been charged, taken from its request and put to ``lost``."""

    request_id: str
    attempt: int
    parts: tuple[Moved, ...]

    @property
    def postings(self) -> tuple[Posting, ...]:
        """Of all its parts."""
        return tuple(posting for part in self.parts for posting in part.postings)


def postings_of(settled: Iterable[Settled], moved: Iterable[Moved | Transfer]) -> list[Posting]:
    """All postings of windows, and then of what was moved."""
    return [*(each for one in settled for each in one.postings), *(each for one in moved for each in one.postings)]


class Batch(Struct, frozen=True, kw_only=True):
    """What is written in one transaction, once: a batch, a window and a booking that are there already change nothing.

    ``id`` is unique among all batches ever. ``epoch`` names the bookkeeper. Another one may have split a window in
    another way, so a transfer moves only what was charged by windows that its own epoch has written.
    """

    id: str
    epoch: str = ""
    settled: tuple[Settled, ...] = ()
    bookings: tuple[Booking, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    coefficients: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Nothing is to be written."""
        return not (self.settled or self.bookings or self.transfers or self.coefficients)

    def parts(self) -> Iterator[Batch]:
        """The same in the smallest batches, to be written in this order: what is moved comes after its windows."""
        parts: list[dict[str, Any]] = [{"settled": (one,)} for one in self.settled]
        parts += [{"transfers": (one,)} for one in self.transfers]
        parts += [{"coefficients": {key: numbers}} for key, numbers in self.coefficients.items()]
        parts += [{"bookings": (one,)} for one in self.bookings]
        for number, part in enumerate(parts):
            yield Batch(id=f"{self.id}-{number}", epoch=self.epoch, **part)


class AccountRow(Struct, frozen=True, kw_only=True):
    """What was posted to one account, and the requests that ended in it (counted in the hour of their end)."""

    account: Account
    amounts: Amounts
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class MeterRow(Struct, frozen=True, kw_only=True):
    """What one engine's meter and price came to in one hour. ``unmeasured_s`` is time whose energy is not known.

    ``total`` is the meter's energy, the price list's money for ``seconds``, and the carbon of it all; the postings of
    the same hour and variant add up to the same.
    """

    hour: int
    engine: str
    family: str
    variant: str
    method: str
    windows: int
    seconds: float
    unmeasured_s: float
    gaps: int
    total: Amounts


class RequestRow(Struct, frozen=True, kw_only=True):
    """A request as the books have it: the booking, and what was measured of it so far.

    ``booking`` is None while the request runs, or when its gateway was killed before it could book it. ``usage`` and
    ``idle`` are sums of its shares, None in their parts while no window of it is settled. ``lost`` is what failed
    attempts took, which is not charged to it. ``method`` is the meter's.
    """

    request_id: str
    tenant: str
    family: str
    variant: str
    booking: Booking | None
    usage: Amounts = UNKNOWN
    idle: Amounts = UNKNOWN
    lost: Amounts = UNKNOWN
    variance_uj2: float = 0.0
    method: str | None = None
