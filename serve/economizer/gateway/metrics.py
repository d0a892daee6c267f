"""What the gateway tells Prometheus. Latency and tokens go by OpenTelemetry's GenAI names, the rest by our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from economizer.gateway.fleet import Fleet
from economizer.gateway.receipts import Receipt
from economizer.ledger.types import Posting
from economizer.router.types import Decision, Prediction
from economizer.variants.types import Variant

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_OVERHEAD = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_STATES = ("starting", "ready", "restarting", "draining", "stopped", "failed")
_TENANTS_MAX = 32  # the first ones that are booked on; the others are counted together
_MODEL = ("gen_ai_request_model", "gen_ai_response_model")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    """What one variant's answers on one endpoint are counted in: looked up once, not for every answer."""

    duration: Histogram
    ttft: Histogram
    ttft_predicted: Histogram
    tpot: Histogram
    tpot_predicted: Histogram
    prompt_tokens: Histogram
    output_tokens: Histogram
    cost_usd: Counter
    energy_j: Counter

    def add(self, receipt: Receipt, predicted: Prediction) -> None:
        if receipt.e2e_s is not None:
            self.duration.observe(receipt.e2e_s)
        if receipt.ttft_s is not None and receipt.stream:
            self.ttft.observe(receipt.ttft_s)
            if predicted.ttft_s is not None:
                self.ttft_predicted.observe(predicted.ttft_s.p50)
        if receipt.tpot_s is not None:
            self.tpot.observe(receipt.tpot_s)
            if predicted.tpot_s is not None:
                self.tpot_predicted.observe(predicted.tpot_s.p50)
        if receipt.usage is not None:
            self.prompt_tokens.observe(receipt.usage.prompt_tokens)
            self.output_tokens.observe(receipt.usage.output_tokens)
        if receipt.costs is not None:
            if receipt.costs.cost_usd is not None:
                self.cost_usd.inc(receipt.costs.cost_usd)
            if receipt.costs.energy_j is not None:
                self.energy_j.inc(receipt.costs.energy_j)


class _AnswerMetrics:
    """What every variant's answers are counted in, by endpoint."""

    def __init__(self, new: CollectorRegistry) -> None:
        self._known: dict[tuple[str, str, str], _Answers] = {}
        self._ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Measured.", _MODEL, buckets=_SECONDS, registry=new
        )
        self._tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Measured.", _MODEL, buckets=_SECONDS, registry=new
        )
        self._duration = Histogram(
            "gen_ai_client_operation_duration_seconds",
            "Measured.",
            (*_MODEL, "gen_ai_operation_name"),
            buckets=_SECONDS,
            registry=new,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage", "Tokens.", (*_MODEL, "gen_ai_token_type"), buckets=_TOKENS, registry=new
        )
        self._predicted = Histogram(
            "economizer_predicted_seconds",
            "Predicted time at the median, of the requests whose actual time was measured.",
            ("variant", "quantity"),
            buckets=_SECONDS,
            registry=new,
        )
        self._cost = Counter(
            "economizer_estimated_cost",
            "Dollars of answers by their variants' cards, active share.",
            ("family", "variant"),
            unit="usd",
            registry=new,
        )
        self._energy = Counter(
            "economizer_estimated_energy",
            "Joules of answers by their variants' cards, active share.",
            ("family", "variant"),
            unit="joules",
            registry=new,
        )

    def of(self, family: str, variant: Variant, endpoint: str) -> _Answers:
        key = (family, variant.id, endpoint)
        if key not in self._known:
            self._known[key] = self._new(family, variant, endpoint)
        return self._known[key]

    def _new(self, family: str, variant: Variant, endpoint: str) -> _Answers:
        model = (family, variant.id)
        return _Answers(
            duration=self._duration.labels(*model, endpoint),
            ttft=self._ttft.labels(*model),
            ttft_predicted=self._predicted.labels(variant.id, "ttft"),
            tpot=self._tpot.labels(*model),
            tpot_predicted=self._predicted.labels(variant.id, "tpot"),
            prompt_tokens=self._tokens.labels(*model, "input"),
            output_tokens=self._tokens.labels(*model, "output"),
            cost_usd=self._cost.labels(family, variant.name),
            energy_j=self._energy.labels(family, variant.name),
        )


class _Booked:
    """What is booked, by tenant as long as there are few of them."""

    def __init__(self, new: CollectorRegistry) -> None:
        self._tenants: set[str] = set()
        labels = ("tenant", "family", "variant", "kind")
        self._counters = (
            Counter("economizer_energy", "Metered joules, as they are booked.", labels, unit="joules", registry=new),
            Counter("economizer_cost", "Dollars, as they are booked.", labels, unit="usd", registry=new),
            Counter("economizer_carbon", "Grams of CO2e, as they are booked.", labels, unit="grams", registry=new),
        )

    def add(self, posting: Posting) -> None:
        account, amounts = posting.account, posting.amounts
        if account.tenant not in self._tenants and len(self._tenants) < _TENANTS_MAX:
            self._tenants.add(account.tenant)
        tenant = account.tenant if account.tenant in self._tenants else "other"
        values = (amounts.energy_uj, amounts.cost_uusd, amounts.carbon_ug)
        for counter, micro in zip(self._counters, values, strict=True):
            if micro is not None:
                counter.labels(tenant, account.family, account.variant, account.kind).inc(micro / 1e6)


class Metrics:
    """One gateway replica's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = _AnswerMetrics(self.registry)
        self._booked = _Booked(self.registry)
        new = self.registry
        self._requests = Counter(
            "economizer_requests", "Requests by what became of them.", ("family", "variant", "outcome"), registry=new
        )
        self._refusals = Counter(
            "economizer_refusals", "Requests refused before any work.", ("family", "reason"), registry=new
        )
        self._unfit = Counter(
            "economizer_unfit", "Variants passed over, by the term they failed.", ("variant", "term"), registry=new
        )
        self._decisions = Counter(
            "economizer_decisions", "Decisions by variant.", ("family", "variant", "policy"), registry=new
        )
        self._retries = Counter("economizer_retries", "Requests sent a second time.", ("variant",), registry=new)
        self._overhead = Histogram(
            "economizer_relay_overhead_seconds",
            "Time in the gateway before the engine was asked.",
            buckets=_OVERHEAD,
            registry=new,
        )
        self._error = Gauge(
            "economizer_prediction_error_ratio",
            "Mean absolute error of the median prediction, over the actual.",
            ("variant", "quantity"),
            registry=new,
        )
        self._coverage = Gauge(
            "economizer_prediction_p95_coverage_ratio",
            "Share of actual times at or under their predicted 95th percentile.",
            ("variant", "quantity"),
            registry=new,
        )
        self._in_flight = Gauge("economizer_in_flight", "Requests being answered now.", registry=new)
        self._engines = Gauge(
            "economizer_engines", "Engines by the state they report.", ("variant", "state"), registry=new
        )

    def posted(self, postings: Sequence[Posting]) -> None:
        """Amounts were booked. None is negative, since counters only grow: ``ledger.posted`` sees to that."""
        for posting in postings:
            self._booked.add(posting)

    def decided(self, decision: Decision) -> None:
        """A decision was made, well or ill."""
        if decision.variant is not None:
            self._decisions.labels(decision.family, decision.variant, decision.policy).inc()
        for candidate in decision.candidates:
            for refusal in candidate.refusals:
                if refusal.term != "pinned":
                    self._unfit.labels(f"{decision.family}@{candidate.variant}", refusal.term).inc()

    def refused(self, family: str, reason: str) -> None:
        """A request was refused before any work."""
        self._refusals.labels(family, reason).inc()

    def retried(self, decision: Decision) -> None:
        """A request goes to a second engine."""
        self._retries.labels(f"{decision.family}@{decision.variant}").inc()

    def sent(self, overhead_s: float) -> None:
        """A request left for its engine this long after it came."""
        self._overhead.observe(overhead_s)

    def finished(self, receipt: Receipt) -> None:
        """A request ended, however it did."""
        family, variant = receipt.decision.family, receipt.variant
        self._requests.labels(family, variant.name if variant else "", receipt.outcome).inc()
        if variant is not None:
            answers = self._answers.of(family, variant, receipt.endpoint)
            answers.add(receipt, receipt.last_decision.candidate(variant.name).prediction)

    def page(self, fleet: Fleet, in_flight: int) -> bytes:
        """The text page, with the gauges brought up to date."""
        self._in_flight.set(in_flight)
        for record in fleet.records():
            states = [report.state for report in record.reports()]
            for state in _STATES:
                self._engines.labels(record.variant.id, state).set(states.count(state))
            error = record.latency.error()
            for quantity, of in (("ttft", error.ttft), ("tpot", error.tpot)):
                if of is not None:
                    self._error.labels(record.variant.id, quantity).set(of.mape)
                    self._coverage.labels(record.variant.id, quantity).set(of.p95_coverage)
        return generate_latest(self.registry)
