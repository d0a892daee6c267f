"""What all requests of one gateway share, built once and passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any

from economizer.config import Configuration, GatewaySettings
from economizer.errors import InvalidRequest
from economizer.gateway.fleet import Fleet, ReplicaReport, ReplicaSource
from economizer.gateway.gatekeeper import Gatekeeper, opaque
from economizer.gateway.metrics import Metrics
from economizer.gateway.receipts import ReceiptStore, RequestLog
from economizer.gateway.relay import Relay
from economizer.gateway.reporting import Ledger, Reporter
from economizer.router.holdout import HoldOut
from economizer.router.policies import Policy
from economizer.variants.catalog import Catalog


@dataclass(kw_only=True, slots=True)
class Gateway:
    """One gateway: its configuration, its view of the fleet, its way to the engines, and its books."""

    settings: GatewaySettings
    catalog: Catalog
    policies: Mapping[str, Policy]
    fleet: Fleet
    source: ReplicaSource
    relay: Relay
    receipts: ReceiptStore
    gatekeeper: Gatekeeper
    holdout: HoldOut
    ledger: Ledger | None = None
    reporter: Reporter | None = None
    answer_wait_s: float = 0.0
    log: RequestLog = field(default_factory=RequestLog)
    metrics: Metrics = field(default_factory=Metrics)
    in_flight: int = 0

    @classmethod
    def create(cls, configuration: Configuration, source: ReplicaSource, ledger: Ledger | None = None) -> Gateway:
        """A gateway over these replicas, and over this ledger if there is one. Needs a running event loop."""
        settings = configuration.gateway
        metrics, fleet = Metrics(), Fleet(configuration.catalog, settings.queue_max)
        gatekeeper = Gatekeeper(configuration.admission, None)
        reporter = None
        if ledger is not None and configuration.ledger is not None:
            reporter = Reporter(
                ledger,
                period_s=configuration.ledger.report_s,
                on_keys=gatekeeper.keys,
                on_prices=fleet.reprice,
                on_posted=metrics.posted,
            )
            gatekeeper.reporter = reporter
        return cls(
            settings=settings,
            catalog=configuration.catalog,
            policies=configuration.all_policies,
            fleet=fleet,
            source=source,
            relay=Relay(
                connect_timeout_s=settings.connect_timeout_s,
                first_byte_timeout_s=settings.first_byte_timeout_s,
                idle_timeout_s=settings.idle_timeout_s,
            ),
            receipts=ReceiptStore(settings.receipts_max),
            gatekeeper=gatekeeper,
            holdout=configuration.savings,
            ledger=ledger,
            reporter=reporter,
            answer_wait_s=configuration.ledger.answer_wait_s if configuration.ledger is not None else 0.0,
            metrics=metrics,
        )

    def believe(self, configuration: Configuration) -> None:
        """From now on decide by these cards, prices and policies, of the same variants."""
        self.catalog = configuration.catalog
        self.policies = configuration.all_policies
        self.gatekeeper.settings = configuration.admission
        self.holdout = configuration.savings
        self.fleet.believe(configuration.catalog)

    def changed(self, variant_id: str, reports: list[ReplicaReport]) -> None:
        """Take in what a variant's engines last reported. Comes some times a second, so the log is written then too."""
        self.log.write()
        self.fleet.refresh(variant_id, reports, self.now_s())

    def now_s(self) -> float:
        """Seconds on a clock that never goes back."""
        return monotonic()

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return time()

    def user(self, caller: str, user: str) -> str:
        """An opaque name for one of a caller's own users; the caller's where it names none."""
        return opaque(f"{caller}/{user}") if user else caller

    def policy(self, family: str, asked: str | None) -> Policy:
        """The policy that a request asks for, or its family's; raises InvalidRequest for one that does not exist."""
        policy = self.policies.get(asked or self.catalog.family(family).policy)
        if policy is None:
            raise InvalidRequest(
                f"policy is {asked!r}: it must be one of {', '.join(sorted(self.policies))}.", param="policy"
            )
        return policy

    def ready_families(self) -> list[str]:
        """Families that can answer now: some variant that the router chooses by itself is ready, or may be woken."""
        return [
            family.name
            for family in self.catalog.families
            if any(
                self.fleet.record(family.name, variant.name).any_ready or variant.replicas_min == 0
                for variant in family.variants
                if variant.routed
            )
        ]

    def engines(self) -> list[dict[str, Any]]:
        """What every engine last reported of itself, without its secret; a variant without one has a row too."""
        none = ReplicaReport(id="-", state="none")
        return [
            {
                "variant": record.variant.id,
                "replica": report.id,
                "state": report.state,
                "running": report.running,
                "waiting": report.waiting,
                "kv_used": report.kv_used,
            }
            for record in self.fleet.records()
            for report in (list(record.reports()) or [none])
        ]
