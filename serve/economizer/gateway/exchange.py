"""One request on its way: read, decided, sent to a replica, its answer delivered, and written up in its receipt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from traceback import format_tb

from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from economizer.admission.limits import Verdict
from economizer.admission.tenants import degraded
from economizer.errors import (
    BadEngineAnswer,
    BodyTooLarge,
    EconomizerError,
    EngineFailed,
    NotReady,
    Overloaded,
)
from economizer.gateway.delivery import Delivery, send_error
from economizer.gateway.fleet import ReplicaReport, Timing, VariantRecord
from economizer.gateway.gatekeeper import Party
from economizer.gateway.openai import WireRequest, number, read_request, route_of
from economizer.gateway.receipts import Attempt, Receipt, new_request_id
from economizer.gateway.relay import EngineAnswer, EngineNotReached, forwarded_headers
from economizer.gateway.state import Gateway
from economizer.gateway.work import AttemptWork
from economizer.router.decide import decide, refusal_error, worth_waking
from economizer.router.holdout import Arm, eligible, held_out
from economizer.router.holdout import arm as arm_of
from economizer.router.replicas import prefix_hashes
from economizer.router.types import Decision, ReplicaState, RequestProfile, Terms
from economizer.variants.catalog import ModelName

_WAIT_HEADER = "x-economizer-measure-wait-ms"
_WAIT_MAX_S = 30.0

logger = logging.getLogger("economizer.gateway")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A request that was decided: what it says, what routing made of it, and where its answer and its story go."""

    wire: WireRequest
    profile: RequestProfile
    receipt: Receipt
    delivery: Delivery


class _EngineRefusal(BadEngineAnswer):
    """The engine answered with a failure of its own, kept to be passed on where nobody else can answer."""

    def __init__(self, message: str, answer: EngineAnswer, body: bytes) -> None:
        super().__init__(message)
        self.answer = answer
        self.answer_body = body


def _said(error: Exception | None) -> str | None:
    """Why an attempt failed. A mistake's own message is left out, since it could hold what the caller wrote."""
    if error is None:
        return None
    return error.message if isinstance(error, EconomizerError) else type(error).__name__


class Exchange:
    """One request and its answer, through all of the gateway. Lives as long as the request."""

    def __init__(self, gateway: Gateway, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._endpoint = endpoint
        self._path = route_of(scope)
        self._receive = receive
        self._send = send
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._party: Party | None = None
        self._asked = False
        self._arrived_s = gateway.now_s()
        self._job: _Job | None = None
        self.id = new_request_id()

    async def run(self) -> None:
        """Answer the request: the caller gets an answer or an OpenAI error, and a receipt of any decision is kept."""
        gateway = self._gateway
        gateway.in_flight += 1
        try:
            await self._answer()
        except EconomizerError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            if self._job is not None:
                self._job.receipt.ended("client_closed", status=499)
            raise
        except Exception as error:  # noqa: BLE001  # the outermost boundary: whatever went wrong, the caller is told
            # Without its message, which could hold what the caller wrote.
            where = "".join(format_tb(error.__traceback__))
            logger.error("request %s failed with %s\n%s", self.id, type(error).__name__, where)
            await self._fail(EconomizerError(f"The gateway failed at request {self.id}."))
        finally:
            gateway.in_flight -= 1
            if self._job is not None:
                receipt = self._job.receipt
                receipt.e2e_s, receipt.work = self._elapsed_s(), None
                gateway.metrics.finished(receipt)
                gateway.receipts.keep(receipt)
                gateway.log.add(receipt)
                if gateway.reporter is not None:
                    gateway.reporter.ended(receipt)
            elif self._asked and gateway.reporter is not None:
                gateway.reporter.released(self.id)

    def _elapsed_s(self) -> float:
        return self._gateway.now_s() - self._arrived_s

    async def _answer(self) -> None:
        gateway, settings = self._gateway, self._gateway.settings
        if gateway.in_flight > settings.in_flight_max:
            raise Overloaded(f"{settings.in_flight_max} requests are in flight.", retry_after_s=settings.retry_after_s)
        self._party = party = gateway.gatekeeper.identify(self._headers, gateway.wall_s())
        wire = read_request(self._endpoint, await self._body(settings.body_bytes_max), self._headers)
        name = gateway.catalog.resolve(wire.model)
        gateway.gatekeeper.check_family(party, name.family, wire.model)
        wire = replace(wire, terms=party.terms(wire.terms, names_on_unmet=wire.names_on_unmet))
        profile = self._profile(wire, name, party)
        arm, decision = self._held_out(profile, self._decide(profile, wire))
        self._asked = gateway.gatekeeper.limited(party)
        verdict = await gateway.gatekeeper.admit(self.id, party, decision, profile)
        if verdict is not None and verdict.soft is not None:
            wire = replace(wire, terms=degraded(wire.terms, party.tenant, verdict.soft.unit))
            profile = replace(profile, pinned=None)
            arm, decision = None, self._decide(profile, wire)
        self._job = job = self._begin(wire, profile, decision, verdict, arm)
        if decision.variant is None:
            degrade = wire.terms.on_unmet == "degrade"
            raise refusal_error(decision, retry_after_s=settings.retry_after_s, degrade=degrade)
        try:
            await self._attempt(job, decision.variant, may_retry=True)
        except EngineFailed as error:
            if job.delivery.started:
                raise
            await self._once_more(job, error)

    async def _once_more(self, job: _Job, error: EngineFailed) -> None:
        """Another replica or variant that meets the terms, where there is one; an engine's own failure is passed on."""
        gateway, avoid = self._gateway, job.receipt.replica or ""
        decision = self._decide(job.profile, job.wire)
        for variant in decision.ranking:
            if gateway.fleet.record(job.profile.family, variant).any_ready_but(avoid):
                again = replace(decision, variant=variant, missed=decision.candidate(variant).refusals)
                job.receipt.redecision = again
                gateway.metrics.retried(again)
                await self._attempt(job, variant, may_retry=False, avoid=avoid)
                return
        if isinstance(error, _EngineRefusal):
            await job.delivery.pass_on_failure(error.answer, error.answer_body)
            return
        message = f"{error.message} No other replica can take the request now."
        raise NotReady(message, retry_after_s=gateway.settings.retry_after_s) from error

    def _held_out(self, profile: RequestProfile, decision: Decision) -> tuple[Arm | None, Decision]:
        """The request's arm in the savings' hold-out, and what it makes of the decision."""
        gateway = self._gateway
        full = gateway.catalog.family(profile.family).full_variant.name
        if gateway.holdout.share == 0 or not eligible(decision, profile, full):
            return None, decision
        arm = arm_of(self.id, gateway.holdout)
        return arm, held_out(decision, full) if arm == "full" else decision

    def _begin(
        self,
        wire: WireRequest,
        profile: RequestProfile,
        decision: Decision,
        verdict: Verdict | None,
        arm: Arm | None,
    ) -> _Job:
        gateway, party = self._gateway, self._party
        assert party is not None
        receipt = Receipt(
            id=self.id,
            caller=party.caller,
            tenant=party.name,
            key_id=party.key_id,
            created_s=gateway.wall_s(),
            endpoint=self._endpoint,
            model=wire.model,
            stream=wire.stream,
            terms=wire.terms,
            decision=decision,
            full=gateway.catalog.family(profile.family).full_variant,
            arm=arm,
            degraded=verdict.soft.words if verdict is not None and verdict.soft is not None else None,
            limits=verdict,
        )
        delivery = Delivery(gateway, wire, receipt, self._send, self._arrived_s, self._answer_wait_s(wire.terms))
        return _Job(wire=wire, profile=profile, receipt=receipt, delivery=delivery)

    def _answer_wait_s(self, terms: Terms) -> float:
        """How long the whole answer may be held back until it is measured, so that the caller's terms still hold."""
        if self._gateway.reporter is None:
            return 0.0
        wait_s = self._gateway.answer_wait_s
        if _WAIT_HEADER in self._headers:
            wait_s = min(_WAIT_MAX_S, number(_WAIT_HEADER, self._headers[_WAIT_HEADER]) / 1e3)
        return 0.0 if terms.e2e_s_max is not None else wait_s

    async def _body(self, bytes_max: int) -> bytes:
        declared = self._headers.get("content-length", "0")
        chunks: list[bytes] = []
        size, more = int(declared) if declared.isdigit() else 0, True
        while size <= bytes_max:
            if not more:
                return b"".join(chunks)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            chunks.append(message.get("body", b""))
            size, more = max(size, sum(map(len, chunks))), message.get("more_body", False)
        raise BodyTooLarge(f"The body has {size} bytes or more: it must have {bytes_max} at most.", param="body")

    def _profile(self, wire: WireRequest, name: ModelName, party: Party) -> RequestProfile:
        fleet = self._gateway.fleet
        caller = self._gateway.user(party.caller, wire.user)
        return RequestProfile(
            family=name.family,
            endpoint=wire.endpoint,
            pinned=name.variant,
            lora=name.lora,
            needs=wire.needs,
            prompt_tokens=fleet.prompt_tokens(name.family, len(wire.prompt_text)),
            prompt_tokens_least=fleet.prompt_tokens_least(len(wire.prompt_text)),
            output_tokens_max=wire.output_tokens_max,
            output_tokens_expected=wire.sequences * fleet.output_tokens(caller, name.family, wire.output_tokens_max),
            caller=caller,
            session=self._headers.get("x-session-id"),
            prefix_hashes=prefix_hashes(wire.prompt_text),
        )

    def _decide(self, profile: RequestProfile, wire: WireRequest) -> Decision:
        gateway = self._gateway
        policy = gateway.policy(profile.family, wire.terms.policy)
        decision = decide(profile, wire.terms, gateway.fleet.snapshot(profile.family), policy)
        gateway.metrics.decided(decision)
        for variant in worth_waking(decision):
            gateway.fleet.record(profile.family, variant).want(gateway.now_s())
        return decision

    async def _attempt(self, job: _Job, variant: str, *, may_retry: bool, avoid: str = "") -> None:
        """Send the request to one replica and deliver its answer; raises EngineFailed or EngineTimeout."""
        gateway, profile, receipt = self._gateway, job.profile, job.receipt
        record = gateway.fleet.record(profile.family, variant)
        receipt.variant = record.variant
        report, state = await self._choose(record, job, avoid)
        receipt.replica = report.id
        receipt.batch = min(state.running + 1, record.variant.concurrency_max)
        sent_s = gateway.now_s()
        dispatch = record.dispatch(report.id, profile, sent_s)
        work = self._work(job, variant, report.id, sent_s)
        gateway.metrics.sent(sent_s - self._arrived_s)

        def answered() -> None:
            ended_s = gateway.now_s()
            dispatch.ended(ended_s, failed=False)
            if work is not None:
                work.end(ended_s, receipt.usage)

        job.delivery.on_answered = answered
        error: Exception | None = None
        refused = False
        try:
            answer = await self._ask(report, job.wire, record.name_at_engine(profile))
            refused = answer.status >= 400
            try:
                first_s = gateway.now_s()
                dispatch.prefilled(first_s)
                if work is not None:
                    work.first_s = first_s
                if answer.status >= 500 and answer.status != 501 and may_retry:
                    message = f"The engine of {record.variant.id} answered {answer.status}."
                    raise _EngineRefusal(message, answer, await answer.rest())
                await job.delivery.pass_on(answer)
            finally:
                answer.close()
            self._learn(job, record, state, first_s - sent_s)
        except Exception as caught:  # whoever made the mistake, it was not the caller, who shall not pay for it
            error = caught
            raise
        finally:
            failed = isinstance(error, EngineFailed) and not isinstance(error, BadEngineAnswer)
            ended_s = gateway.now_s()
            dispatch.ended(ended_s, failed=failed)
            if work is not None:
                worked = not refused and not isinstance(error, EngineNotReached)
                work.end(ended_s, receipt.usage, lost=error is not None or refused, worked=worked)
            receipt.attempts.append(Attempt(variant=variant, replica=report.id, error=_said(error)))

    def _work(self, job: _Job, variant: str, replica: str, sent_s: float) -> AttemptWork | None:
        """What the attempt makes its engine do, told to the books from now on."""
        reporter, receipt, profile = self._gateway.reporter, job.receipt, job.profile
        if reporter is None:
            return None
        predicted = receipt.last_decision.candidate(variant).prediction
        cached = self._gateway.fleet.record(profile.family, variant).cached_share
        receipt.work = work = AttemptWork(
            request_id=receipt.id,
            attempt=len(receipt.attempts),
            tenant=receipt.tenant,
            family=profile.family,
            variant=variant,
            engine=replica,
            sent_s=sent_s,
            prompt_tokens=profile.prompt_tokens,
            cached_tokens=profile.prompt_tokens * cached,
            output_tokens_max=profile.output_tokens_max,
            streamed=job.wire.stream,
            ttft_s=predicted.ttft_s.p50 - (predicted.wake_s or 0.0) if predicted.ttft_s is not None else None,
            tpot_s=predicted.tpot_s.p50 if predicted.tpot_s is not None else None,
        )
        reporter.begin(work, receipt)
        return work

    def _learn(self, job: _Job, record: VariantRecord, state: ReplicaState, first_byte_s: float) -> None:
        receipt, profile = job.receipt, job.profile
        if receipt.outcome == "ok" and receipt.usage is not None:
            timing = Timing(
                ended_s=self._gateway.now_s(),
                first_byte_s=first_byte_s,
                tpot_s=receipt.tpot_s,
                streamed=job.wire.stream,
                sequences=job.wire.sequences,
            )
            record.learn(receipt.usage, state, timing)
            sequences = 0 if self._endpoint == "embeddings" else job.wire.sequences
            self._gateway.fleet.learn(
                profile.family, profile.caller, len(job.wire.prompt_text), receipt.usage, sequences
            )

    async def _ask(self, report: ReplicaReport, wire: WireRequest, model: str) -> EngineAnswer:
        """Send the request; returns at the first byte of the answer, or by the caller's deadline."""
        terms = wire.terms
        left_s = None
        if terms.e2e_s_max is not None and terms.on_unmet == "refuse":
            left_s = max(0.05, terms.e2e_s_max - self._elapsed_s())
        return await self._gateway.relay.send(
            report.url + self._path,
            wire.body.for_engine(model),
            forwarded_headers(self._headers, report.secret),
            deadline_s=left_s,
        )

    async def _choose(self, record: VariantRecord, job: _Job, avoid: str) -> tuple[ReplicaReport, ReplicaState]:
        """The replica that ranks first; where the variant has none yet, one is waited for."""
        source, variant_id = self._gateway.source, record.variant.id

        def choice(replica_ids: Iterable[str]) -> list[str]:
            return record.rank(replica_ids, job.profile, avoid)

        replica_id = source.choose_now(variant_id, choice)
        if replica_id is None:
            wait_s = self._wait_s(job.wire.terms)
            try:
                with record.waiting():
                    async with asyncio.timeout(wait_s):
                        replica_id = await source.choose(variant_id, choice)
            except TimeoutError:
                message = f"No replica of {variant_id} became ready within {wait_s:g} s."
                raise NotReady(message, retry_after_s=self._gateway.settings.retry_after_s) from None
        report, state = record.report(replica_id), record.replica(replica_id)
        if report is None or state is None or not report.ready:
            raise EngineFailed(f"The replica of {variant_id} left before it was asked.")
        return report, state

    def _wait_s(self, terms: Terms) -> float:
        """How long the request may wait for a replica."""
        wait_s = self._gateway.settings.wake_timeout_s
        if terms.on_unmet == "refuse":
            limits_s = [limit for limit in (terms.ttft_s_max, terms.e2e_s_max) if limit is not None]
            wait_s = min([wait_s, *[max(0.05, limit - self._elapsed_s()) for limit in limits_s]])
        return wait_s

    async def _fail(self, error: EconomizerError) -> None:
        """Tell the caller of an error; one after the first byte has been told in the stream already."""
        job = self._job
        if job is None:
            self._gateway.log.add_refusal(self.id, self._endpoint, error, self._gateway.wall_s())
        if job is None or not job.receipt.attempts:
            family = job.profile.family if job is not None else ""
            self._gateway.metrics.refused(family, error.code or error.type)
        started = job is not None and job.delivery.started
        if job is not None:
            outcome = "failed" if job.receipt.attempts else "refused"
            job.receipt.ended(outcome, status=None if started else error.status, error=error.code)
        if not started:
            await send_error(self._send, error, [(b"x-economizer-request-id", self.id.encode())])
