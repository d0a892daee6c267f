"""The Ray Serve application: one deployment per variant, and the gateway in front. What ``serve deploy`` imports."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import disable_created_metrics
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from economizer.autoscaling.planner import GATEWAY, LEDGER
from economizer.autoscaling.policy_ray import DEMAND, HELD
from economizer.config import (
    Configuration,
    LedgerSettings,
    VariantConfig,
    home,
    located,
    parse,
    parse_changed,
    with_catalogue,
)
from economizer.engine.replica_ray import EngineReplica, MeterSpec, log_with_serve
from economizer.errors import ConfigurationError
from economizer.gateway.app import App
from economizer.gateway.ledger_ray import LedgerReplica, ServeLedger
from economizer.gateway.replicas_ray import ServeReplicas, VariantRequestRouter
from economizer.gateway.state import Gateway

_DRAIN_MARGIN_S = 15.0  # Serve kills a replica that is still in its destructor; the engine needs a little to end
_FULL_SHARE = 0.8  # of a replica's batch, from which on another replica is worth it
_METRICS_S = 1.0
_LEDGER_CALLS_MAX = 10_000  # at once: those of every engine and every gateway, none of which lasts
_INGRESS_DRAIN_S = 30.0  # so long Serve keeps an ingress replica open to proxies that have not heard of its end
_FLEET_KNOWN_S = 5.0
_YOUNG_OBJECTS = 5_000  # made before a collection looks at them; Python's own 700 are some five requests

logger = logging.getLogger("economizer.gateway")


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application that ``args`` (the ``args`` of a Serve config) describe; raises ConfigurationError.

    The catalogue is read here and nowhere else: gateway replicas may run on machines that do not have it.
    """
    args = with_catalogue(dict(args))
    configuration = parse(args)
    settings = configuration.gateway
    located_ledger = configuration.ledger.located(home()) if configuration.ledger is not None else None
    ledger = _ledger(configuration, located_ledger) if located_ledger is not None else None
    variants = {
        f"{family}@{name}": _variant(f"{family}@{name}", config, located_ledger, ledger)
        for family, name, config in configuration.variant_configs()
    }
    gateway = serve.deployment(
        serve.ingress()(GatewayIngress),
        name=GATEWAY,
        ray_actor_options={"num_cpus": settings.num_cpus},
        max_ongoing_requests=settings.in_flight_max + 64,  # the gateway itself answers 429, in OpenAI's words
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.replicas,
            max_replicas=settings.replicas,
            metrics_interval_s=_METRICS_S,
            look_back_period_s=2 * _METRICS_S,
        ),
        graceful_shutdown_timeout_s=_INGRESS_DRAIN_S + _DRAIN_MARGIN_S + max(_drains_s(configuration)),
        max_surge_percent=100,
        rolling_update_percentage=1.0,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return gateway.bind(args, variants, ledger)


def _drains_s(configuration: Configuration) -> list[float]:
    """How long engines may drain; the gateway that passes on their answers must last as long."""
    return [config.engine.drain_timeout_s for _, _, config in configuration.variant_configs()]


def _ledger(configuration: Configuration, settings: LedgerSettings) -> serve.Application:
    """The bookkeeper: one for all gateways and engines, since limits and books are of all of them."""
    variants = tuple(variant for family in configuration.catalog.families for variant in family.variants)
    deployment = serve.deployment(
        LedgerReplica,
        name=LEDGER,
        ray_actor_options={"num_cpus": configuration.gateway.num_cpus},
        num_replicas=1,
        max_ongoing_requests=_LEDGER_CALLS_MAX,
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=_DRAIN_MARGIN_S,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(settings, variants)


def _variant(
    variant_id: str, config: VariantConfig, ledger_settings: LedgerSettings | None, ledger: serve.Application | None
) -> serve.Application:
    """One variant's deployment. A rolling update starts the new replica before it ends the old one."""
    bounds, delays = config.replicas, config.scaling
    deployment = serve.deployment(
        EngineReplica,
        name=variant_id,
        ray_actor_options=config.ray.actor_options(),
        autoscaling_config=AutoscalingConfig(
            min_replicas=bounds.min,
            max_replicas=bounds.max,
            initial_replicas=bounds.initial if bounds.initial is not None else bounds.min,
            target_ongoing_requests=max(1.0, _FULL_SHARE * config.concurrency_max),
            upscale_delay_s=delays.up_s,
            downscale_delay_s=delays.down_s,
            downscale_to_zero_delay_s=delays.to_zero_s,
            metrics_interval_s=_METRICS_S,
            look_back_period_s=2 * _METRICS_S,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=VariantRequestRouter, request_routing_stats_period_s=_METRICS_S
        ),
        graceful_shutdown_timeout_s=config.engine.drain_timeout_s + _DRAIN_MARGIN_S,
        health_check_period_s=2.0,
        max_surge_percent=100,
        rolling_update_percentage=1.0,
    )
    settings = ledger_settings or LedgerSettings()
    meter = MeterSpec(
        settings=settings.meter,
        window_s=settings.window_s,
        cores=config.ray.num_cpus,
        gpus=config.ray.num_gpus,
        idle_w=config.power.idle_w if config.power is not None else None,
    )
    return deployment.bind(variant_id, located(config.engine, home()), meter, ledger)


class GatewayIngress:
    """The gateway as Serve's ingress replica."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: dict[str, Any], handles: dict[str, DeploymentHandle[Any]], ledger: DeploymentHandle[Any] | None
    ) -> None:
        """Build the gateway over the variants' handles, and begin to watch their replicas."""
        log_with_serve()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._args = args
        self._source = ServeReplicas(handles)
        self._ledger = ServeLedger(ledger) if ledger is not None else None
        self._gateway = Gateway.create(parse(args), self._source, self._ledger)
        self._source.start(self._gateway.changed)
        if self._gateway.reporter is not None:
            self._gateway.reporter.start()
        await self._until_the_fleet_is_known()
        # What lives as long as the gateway is not looked through again and again, and kept receipts less often: full
        # collections are a tenth of a second without an answer.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls this when the gateway's ``user_config`` changed: no process is replaced for it.

        What cannot be used is logged and changes nothing, since Serve would end a gateway that raised here.
        """
        try:
            configuration = parse_changed(self._args, user_config)
        except ConfigurationError as error:
            logger.error("user_config was not taken: %s", error.message)
            return
        self._gateway.believe(configuration)
        if self._ledger is not None:
            families = configuration.catalog.families
            await self._ledger.believe(tuple(variant for family in families for variant in family.variants))

    async def _until_the_fleet_is_known(self) -> None:
        """Serve sends requests here as soon as the constructor returns, and ends the gateway that this one replaces."""
        expected = [record for record in self._gateway.fleet.records() if record.variant.replicas_min > 0]
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLEET_KNOWN_S):
                if self._gateway.reporter is not None:
                    await self._gateway.reporter.until_answered()
                while not all(record.any_ready for record in expected):  # noqa: ASYNC110 - Serve sets no event
                    await asyncio.sleep(0.05)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return App(self._gateway)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """By variant: requests at its engines, and those that wait for one or would have been better served by it."""
        now_s, records = self._gateway.now_s(), list(self._gateway.fleet.records())
        demand = {f"{DEMAND}{record.variant.id}": float(record.demand(now_s)) for record in records}
        return demand | {f"{HELD}{record.variant.id}": float(record.in_flight) for record in records}

    async def __del__(self) -> None:
        if hasattr(self, "_source"):
            await self._source.stop()
            self._gateway.log.write()
            if self._gateway.reporter is not None:
                await self._gateway.reporter.stop()
            await self._gateway.relay.close()
