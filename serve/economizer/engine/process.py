"""An engine kept running: started with a deadline, watched, restarted after a crash, drained before it stops."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Literal

import aiohttp

from economizer.engine.checkpoint import Checkpoint
from economizer.engine.run import Endpoint, EngineRun, Tail
from economizer.engine.scrape import EngineLoad, read_metrics
from economizer.engine.types import EngineSpec, EngineState
from economizer.errors import EngineFailed

_POLL_S = 1.0
_START_POLL_S = 0.25
_SCRAPE_TIMEOUT_S = 2.0
_LOAD_AGE_S = 0.3  # routing and autoscaling stats are often asked for together; one scrape serves both
_BACKOFF_MAX_S = 30.0
_STEADY_S = 60.0  # a run that was ready for this long ends a row of crashes
_STALE_S = 2.0  # a gateway may send requests for this long after the replica was told to go
_log = logging.getLogger("economizer.engine")


class EngineProcess:
    """One engine at a time, from ``start()`` until ``stop()``; both on the same event loop.

    ``state`` goes starting -> ready -> (restarting -> ready)* -> draining -> stopped, or ends in failed. ``host`` is
    the address to listen on, ``name`` the model name that it answers to.
    """

    def __init__(self, spec: EngineSpec, *, name: str, host: str) -> None:
        self.state: EngineState = "starting"
        self._spec = spec
        self._name = name
        self._host = host
        self._tail = Tail(name)
        self._checkpoint = Checkpoint(spec.model)
        self._run: EngineRun | None = None
        self._client: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._load = EngineLoad()
        self._load_read_s = float("-inf")

    @property
    def endpoint(self) -> Endpoint | None:
        """Where requests may go: only while the engine is ready, or draining and still running."""
        return self._run.endpoint if self._run and self.state in ("ready", "draining") else None

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of the engine's output, oldest first."""
        return self._tail.lines

    @property
    def pid(self) -> int | None:
        """The process id of the running engine's guard."""
        return self._run.pid if self._run else None

    async def start(self) -> None:
        """Start the engine; returns when it is ready.

        Raises EngineFailed with its last lines when it fails, and CheckpointDamaged before it is even started.
        """
        self._client = aiohttp.ClientSession()
        try:
            await self._bring_up()
        except BaseException:
            if self.state == "starting":
                self.state = "failed"
            await self._client.close()
            raise
        self._watch = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """End the engine and everything below it; may be called at any time, and more than once."""
        self.state = "stopped"
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        await self._take_down()
        if self._client is not None:
            await self._client.close()

    def check(self) -> None:
        """Raise EngineFailed, with the engine's last lines, when it will not come back by itself."""
        if self._watch is not None and self._watch.done() and not self._watch.cancelled():
            self._watch.result()

    async def drain(self) -> None:
        """Take no new work; returns when what runs has finished, or ``drain_timeout_s`` is over.

        Requests from gateways that have not heard yet are still served for a moment. An engine that does not tell
        its load is given the whole time.
        """
        if self.state != "ready":
            return
        self.state = "draining"
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._spec.drain_timeout_s
        await asyncio.sleep(min(_STALE_S, self._spec.drain_timeout_s))
        idle_in_a_row = 0
        while self._run is not None and loop.time() < deadline_s:
            idle_in_a_row = idle_in_a_row + 1 if (await self.load()).idle else 0
            if idle_in_a_row == 2:
                return
            await asyncio.sleep(min(_POLL_S / 2, max(0.0, deadline_s - loop.time())))

    async def load(self) -> EngineLoad:
        """What the engine says of its load, at most a moment old; all unknown while it does not answer."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._load_read_s >= _LOAD_AGE_S:
            self._load_read_s = now_s
            self._load = await self._scrape()
        return self._load

    @property
    def last_load(self) -> EngineLoad:
        """What it last said, without asking it again."""
        return self._load

    async def _scrape(self) -> EngineLoad:
        if self._client is None or self._client.closed or (endpoint := self.endpoint) is None:
            return EngineLoad()
        timeout = aiohttp.ClientTimeout(total=_SCRAPE_TIMEOUT_S)
        try:
            url = f"{endpoint.url}/metrics"
            async with self._client.get(url, headers=endpoint.headers, timeout=timeout) as answer:
                return read_metrics(await answer.text()) if answer.status == 200 else EngineLoad()
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError):
            return EngineLoad()

    async def _bring_up(self) -> None:
        """A new run, ready; raises EngineFailed with its last lines, having taken it down again."""
        self._run = run = await self._begin()
        ended = asyncio.create_task(run.ended())
        try:
            async with asyncio.timeout(self._spec.start_timeout_s):
                while await self._probe(run.endpoint, timeout_s=self._spec.health_timeout_s) != "well":
                    await asyncio.wait({ended}, timeout=_START_POLL_S)
                    if ended.done():
                        raise self._failure(f"{ended.result()} before it was ready")
        except TimeoutError:
            failure = self._failure(f"was not ready within {self._spec.start_timeout_s:g} s")
            await self._take_down()
            raise failure from None
        except BaseException:
            await self._take_down()
            raise
        finally:
            ended.cancel()
        if self.state == "stopped":
            await self._take_down()
            raise self._failure("was stopped before it was ready")
        self.state = "ready"
        _log.info("%s: ready at %s", self._name, run.endpoint.url)

    async def _begin(self) -> EngineRun:
        await self._checkpoint.check(self._name)
        if self.state == "stopped":
            raise self._failure("was stopped before it was started")
        return await EngineRun.begin(self._spec, name=self._name, host=self._host, tail=self._tail)

    async def _keep_running(self) -> None:
        """Restart the engine, with growing pauses, until it is drained, or has crashed too often in a row."""
        loop = asyncio.get_running_loop()
        crashes_in_a_row = 0
        while self._run is not None:
            ready_since_s = loop.time()
            failure: EngineFailed | OSError = self._failure(await self._until_broken(self._run))
            if loop.time() - ready_since_s >= _STEADY_S:
                crashes_in_a_row = 0
            if self.state == "ready":
                self.state = "restarting"
            await self._take_down()
            while self.state == "restarting":
                _log.warning("%s", failure)
                crashes_in_a_row += 1
                if crashes_in_a_row > self._spec.restarts_max:
                    self.state = "failed"
                    raise failure
                backoff_s = self._spec.restart_backoff_s * 2.0 ** (crashes_in_a_row - 1)
                await asyncio.sleep(min(backoff_s, _BACKOFF_MAX_S))
                try:
                    await self._bring_up()
                except (EngineFailed, OSError) as error:
                    failure = error

    async def _until_broken(self, run: EngineRun) -> str:
        """Wait until the engine ends, stops listening, or has been unwell for ``health_timeout_s``; returns which.

        What the engine leaves below it can keep its guard busy for the grace, so a refused connection counts as its
        end, too: Linux refuses only where nobody listens.
        """
        loop = asyncio.get_running_loop()
        limit_s = self._spec.health_timeout_s
        ended = asyncio.create_task(run.ended())
        healthy_at_s = loop.time()
        failures_in_a_row = 0
        try:
            while True:
                await asyncio.wait({ended}, timeout=min(_POLL_S, limit_s / 3))
                if ended.done():
                    return ended.result()
                health = await self._probe(run.endpoint, timeout_s=max(limit_s / 2, 0.5))
                if health == "well":
                    healthy_at_s, failures_in_a_row = loop.time(), 0
                elif health == "refused":
                    await asyncio.wait({ended}, timeout=0.5)
                    return ended.result() if ended.done() else "stopped listening"
                else:
                    failures_in_a_row += 1
                    if failures_in_a_row >= 2 and loop.time() - healthy_at_s >= limit_s:
                        return f"did not answer /health for {loop.time() - healthy_at_s:.1f} s"
        finally:
            ended.cancel()

    async def _probe(self, endpoint: Endpoint, *, timeout_s: float) -> Literal["well", "unwell", "refused"]:
        if self._client is None or self._client.closed:
            return "unwell"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            url = f"{endpoint.url}/health"
            async with self._client.get(url, headers=endpoint.headers, timeout=timeout) as answer:
                return "well" if answer.status == 200 else "unwell"
        except aiohttp.ClientConnectorError as error:
            return "refused" if error.errno == errno.ECONNREFUSED else "unwell"
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return "unwell"

    async def _take_down(self) -> None:
        run, self._run = self._run, None
        self._load_read_s = float("-inf")
        if run is not None:
            await run.end()

    def _failure(self, why: str) -> EngineFailed:
        last = "\n".join(f"  | {line}" for line in self._tail.lines) or "  (it wrote nothing)"
        return EngineFailed(f"The engine of {self._name} {why}. Its last lines:\n{last}")
