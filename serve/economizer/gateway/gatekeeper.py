"""Who sends a request, and whether it may: keys, tenants, rates and budgets, as the exchange asks for them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from msgspec import Struct

from economizer.admission.keys import KeyRecord, KeyRing, looks_like_ours, presented
from economizer.admission.limits import Ask, Use, Verdict
from economizer.admission.tenants import ANONYMOUS, AdmissionSettings, Tenant, allowed, with_tenant
from economizer.errors import KeyRefused, LedgerGone, ModelNotFound, NotAllowed
from economizer.gateway.reporting import Reporter
from economizer.ledger.types import RequestRow
from economizer.router.types import Decision, RequestProfile, Terms

_MICRO = 1e6
_RETRY_S = 2.0

logger = logging.getLogger("economizer.gateway")


def opaque(text: str) -> str:
    """A name for something that must not be named itself; empty for nothing."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


class Party(Struct, frozen=True, kw_only=True):
    """Who sends a request. ``caller`` is who may read its receipts, opaque; ``key_id`` names the key, never the key."""

    name: str
    key_id: str
    caller: str
    tenant: Tenant

    def terms(self, terms: Terms, *, names_on_unmet: bool) -> Terms:
        """A request's terms, with the tenant's."""
        return terms if self.tenant == _UNLIMITED else with_tenant(terms, self.tenant, names_on_unmet=names_on_unmet)

    def may_read(self, row: RequestRow) -> bool:
        """It is this tenant's request; those without a key may read what was sent with the same token as theirs."""
        if row.tenant != self.name:
            return False
        return self.name != ANONYMOUS or (row.booking is not None and row.booking.key_id == self.key_id)


_UNLIMITED = Tenant()


class Gatekeeper:
    """Knows the keys once the bookkeeper has told them. Without a ledger there are no keys, and all are anonymous."""

    def __init__(self, settings: AdmissionSettings, reporter: Reporter | None) -> None:
        self.settings = settings
        self.reporter = reporter
        self._ring: KeyRing | None = None

    def keys(self, records: tuple[KeyRecord, ...]) -> None:
        """From now on these are the keys."""
        self._ring = KeyRing(records)

    def identify(self, headers: Mapping[str, str], now_s: float) -> Party:
        """Who sends this; raises KeyRefused, or LedgerGone where keys must be known and are not."""
        text = presented(headers)
        if text is not None and looks_like_ours(text):
            record = self._known().find(text, now_s)
            tenant = self.settings.tenant(record.tenant)
            return Party(name=record.tenant, key_id=record.id, caller=f"tenant:{record.tenant}", tenant=tenant)
        if self.settings.keys == "required":
            given = "is no key of this gateway" if text else "is missing"
            raise KeyRefused(f"The API key {given}: send one as 'Authorization: Bearer eco-...'.")
        caller = opaque(text or "")
        return Party(name=ANONYMOUS, key_id=caller, caller=caller, tenant=self.settings.anonymous)

    def check_admin(self, headers: Mapping[str, str], now_s: float) -> None:
        """Raise KeyRefused without a key that works, NotAllowed where it is no admin's."""
        text = presented(headers)
        if text is None:
            raise KeyRefused("This needs an admin key: make one with `economizer keys create NAME --admin`.")
        if self._known().find(text, now_s).role != "admin":
            raise NotAllowed("This needs an admin key.")

    def check_family(self, party: Party, family: str, model: str) -> None:
        """Raise ModelNotFound where the tenant may not use the family, as if it did not exist."""
        if not allowed(party.tenant, family):
            raise ModelNotFound(f"The model {model[:100]!r} does not exist for this key.", param="model")

    def limited(self, party: Party) -> bool:
        """The tenant has a rate or a budget."""
        tenant = party.tenant
        return bool(tenant.requests_per_minute or tenant.tokens_per_minute or tenant.budgets)

    async def admit(self, request_id: str, party: Party, decision: Decision, profile: RequestProfile) -> Verdict | None:
        """None where the tenant has no limits; raises Overloaded, QuotaSpent or LedgerGone."""
        reporter, tenant = self.reporter, party.tenant
        if reporter is None:
            return None
        if reporter.gone and self.settings.on_ledger_gone == "refuse":
            raise LedgerGone("Requests cannot be booked now.", retry_after_s=_RETRY_S)
        if not self.limited(party):
            return None
        costs = None if decision.variant is None else decision.candidate(decision.variant).prediction.costs
        ask = Ask(
            request_id=request_id,
            gateway=reporter.name,
            tenant=party.name,
            settings=tenant,
            tokens=profile.prompt_tokens + round(profile.output_tokens_expected),
            predicted=Use(uusd=_micro(costs.cost_usd), uj=_micro(costs.energy_j), ug=_micro(costs.carbon_g))
            if costs is not None
            else Use(),
        )
        try:
            verdict = await reporter.admit(ask)
        except Exception as error:  # noqa: BLE001 - Ray and Serve raise many things while the bookkeeper is replaced
            logger.warning("limits of %s could not be checked: %s", party.name, type(error).__name__)
            if self.settings.on_ledger_gone == "refuse":
                message = "Rates and budgets cannot be checked now."
                raise LedgerGone(message, retry_after_s=_RETRY_S) from None
            return None
        if verdict.refused is not None:
            raise verdict.refused.error()
        return verdict

    def _known(self) -> KeyRing:
        if self._ring is not None:
            return self._ring
        if self.reporter is None:
            return KeyRing(())
        raise LedgerGone("The keys are not known yet: the ledger cannot be read.", retry_after_s=_RETRY_S)


def _micro(value: float | None) -> int | None:
    return None if value is None else round(value * _MICRO)
