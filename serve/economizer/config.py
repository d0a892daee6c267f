"""Configuration: with yaml_files.py the only reader of files and environment variables. YAML in, frozen types out.

The same file serves ``serve deploy`` and ``make run``: a Ray Serve config whose application arguments are what
:class:`Configuration` describes. Unknown keys are refused, and every
mistake is reported at once with the path of its key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from economizer.admission.tenants import AdmissionSettings, Tenant
from economizer.autoscaling.planner import GATEWAY
from economizer.energy.carbon import HourlyTable
from economizer.energy.choose import MeterSettings
from economizer.engine.types import EngineSpec
from economizer.errors import ConfigurationError, Mistake
from economizer.published import with_published
from economizer.router.holdout import HoldOut
from economizer.router.policies import POLICIES, Policy
from economizer.variants.catalog import NAME_RULE, Catalog, is_name
from economizer.variants.types import EnergyCard, Family, PowerCard, Price, QualityCard, SpeedCard, Variant, require
from economizer.yaml_files import from_pydantic, join, laid_over, mistake, read_yaml

IMPORT_PATH = "economizer.gateway.deployment:build"
AUTOSCALING_POLICY = "economizer.autoscaling.policy_ray:scale"
_ENGINE_KEYS = frozenset({"engine", "ray", "replicas", "scaling"})  # of a variant: its deployment is made of them
_FORBID = {"extra": "forbid"}
_CATALOGUE = "catalogue"
_NO_FILE = object()
_GIB = 2**30
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewaySettings:
    """How the gateway itself runs. Times in seconds.

    ``queue_max`` is how many requests one engine may hold waiting beyond its batch before the gateway answers 429;
    ``in_flight_max`` bounds all requests of one gateway replica. ``wake_timeout_s`` is how long a request may wait for
    a variant that has no replica yet. ``retry_after_s`` is what 429 and 503 tell the caller.
    """

    __pydantic_config__ = _FORBID

    replicas: int = 1
    num_cpus: float = 0.1
    body_bytes_max: int = 32 * 1024 * 1024
    in_flight_max: int = 1024
    queue_max: int = 64
    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    wake_timeout_s: float = 180.0
    retry_after_s: float = 1.0
    receipts_max: int = 2_000

    def __post_init__(self) -> None:
        for name in ("replicas", "body_bytes_max", "in_flight_max", "receipts_max"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        for name in ("connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s", "wake_timeout_s", "retry_after_s"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        require(self.queue_max >= 0, "queue_max", self.queue_max, "must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerSettings:
    """Where what was spent is booked, and how often. Times in seconds.

    ``url`` is SQLAlchemy's, of SQLite or PostgreSQL; ``env:NAME`` takes it from that environment variable of the
    bookkeeper's node, so that a password stands in no file. ``spool`` is the folder for bookings that the database does
    not take. Engines are metered in windows of ``window_s``; gateways tell what happened each ``report_s``.
    ``answer_wait_s`` is how long an answer that is complete may be held back until its energy is measured; 0 answers at
    once with the estimate. Requests and windows are forgotten after ``keep_days``, hourly accounts never.
    """

    __pydantic_config__ = _FORBID

    url: str = "sqlite:///./.economizer/ledger/ledger.db"
    spool: str = "./.economizer/ledger/spool"
    spool_mib_max: int = 1024
    window_s: float = 1.0
    report_s: float = 0.5
    answer_wait_s: float = 0.0
    keep_days: float = 35.0
    meter: MeterSettings = field(default_factory=MeterSettings)

    def __post_init__(self) -> None:
        require(bool(self.url), "url", self.url, "must be a database's URL; for no ledger, set ledger: null")
        # The books give an engine up after 8 s without a window, and wait 3 s for a gateway.
        require(0.1 <= self.window_s <= 4, "window_s", self.window_s, "must be between 0.1 and 4")
        require(0.05 <= self.report_s <= 1, "report_s", self.report_s, "must be between 0.05 and 1")
        require(0 <= self.answer_wait_s <= 30, "answer_wait_s", self.answer_wait_s, "must be between 0 and 30")
        require(self.spool_mib_max >= 1, "spool_mib_max", self.spool_mib_max, "must be 1 or more")
        require(1 / 24 <= self.keep_days < inf, "keep_days", self.keep_days, "must be an hour (1/24) or more")

    def located(self, base: Path) -> LedgerSettings:
        """With its relative paths made absolute below ``base``, and the URL read from the environment where it says."""
        url = self.url
        if url.startswith("env:"):
            name = url.removeprefix("env:")
            url = os.environ.get(name, "")
            if not url:
                rule = f"must be the ledger's URL, since ledger.url is {self.url!r}"
                raise ConfigurationError("environment", (mistake(name, url, rule),))
        if url.startswith("sqlite:///./"):
            url = f"sqlite:///{base / url.removeprefix('sqlite:///./')}"
        spool = str(base / self.spool) if self.spool.startswith("./") else self.spool
        return replace(self, url=url, spool=spool)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaBounds:
    """How many replicas a variant may have. ``initial`` is how many it starts with; None is ``min``."""

    __pydantic_config__ = _FORBID

    min: int = 1
    max: int = 1
    initial: int | None = None

    def __post_init__(self) -> None:
        require(self.min >= 0, "min", self.min, "must be 0 or more")
        require(self.max >= max(1, self.min), "max", self.max, "must be 1 or more, and at least min")
        if self.initial is not None:
            require(self.min <= self.initial <= self.max, "initial", self.initial, "must be between min and max")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingDelays:
    """How long load must stay high or low before replicas are added or taken away, in seconds."""

    __pydantic_config__ = _FORBID

    up_s: float = 5.0
    down_s: float = 60.0
    to_zero_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("up_s", "down_s", "to_zero_s"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class RayResources:
    """What one replica takes of the Ray cluster. It is Ray's bookkeeping, not a limit.

    ``memory_gib`` is what an engine needs of the machine's memory: where Ray's books have no room for it, its start
    waits. ``economizer up`` looks for what is to run at first before it starts.
    """

    __pydantic_config__ = _FORBID

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_gib: float = 0.0
    accelerator_type: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus", "memory_gib"):
            require(0 <= getattr(self, name) < inf, name, getattr(self, name), "must be 0 or more and finite")

    def actor_options(self) -> dict[str, Any]:
        """Ray's ``ray_actor_options``."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.memory_gib:
            options["memory"] = int(self.memory_gib * _GIB)
        if self.accelerator_type is not None:
            options["accelerator_type"] = self.accelerator_type
        if self.resources:
            options["resources"] = dict(self.resources)
        return options


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantConfig:
    """One variant as it is written in YAML, or in the catalogue."""

    __pydantic_config__ = _FORBID

    engine: EngineSpec
    context_tokens_max: int
    concurrency_max: int = 16
    features: frozenset[str] = frozenset({"chat", "completions", "responses", "tools", "json", "logprobs"})
    loras: tuple[str, ...] = ()
    hardware: str
    replicas: ReplicaBounds = field(default_factory=ReplicaBounds)
    scaling: ScalingDelays = field(default_factory=ScalingDelays)
    ray: RayResources = field(default_factory=RayResources)
    quality: QualityCard | None = None
    speed: SpeedCard | None = None
    power: PowerCard | None = None
    energy: EnergyCard | None = None
    routed: bool = True
    size_bytes: int | None = None
    kl_mean: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyConfig:
    """One family as it is written in YAML: ``full`` names the variant that the others are compared with."""

    __pydantic_config__ = _FORBID

    full: str
    variants: Mapping[str, VariantConfig]
    policy: str = "balanced"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Everything that one Economizer application is built from."""

    __pydantic_config__ = _FORBID

    families: Mapping[str, FamilyConfig]
    prices: Mapping[str, Price] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    ledger: LedgerSettings | None = field(default_factory=LedgerSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    savings: HoldOut = field(default_factory=HoldOut)

    @cached_property
    def catalog(self) -> Catalog:
        """The families as frozen types, looked up by model name."""
        return Catalog(families=tuple(self._family(name, family) for name, family in sorted(self.families.items())))

    def _family(self, name: str, family: FamilyConfig) -> Family:
        variants = tuple(self.variant(name, key) for key in sorted(family.variants))
        return Family(
            name=name, full=family.full, variants=variants, policy=family.policy, aliases=tuple(family.aliases)
        )

    def variant(self, family: str, name: str) -> Variant:
        """One variant of the file as the router's frozen type."""
        config = self.families[family].variants[name]
        return Variant(
            family=family,
            name=name,
            context_tokens_max=config.context_tokens_max,
            concurrency_max=config.concurrency_max,
            features=config.features,
            loras=config.loras,
            hardware=config.hardware,
            quality=config.quality,
            speed=config.speed,
            power=config.power,
            energy=config.energy,
            price=self._price(config),
            replicas_min=config.replicas.min,
            replicas_max=config.replicas.max,
            routed=config.routed,
            size_bytes=config.size_bytes,
            kl_mean=config.kl_mean,
            top1_agreement=config.top1_agreement,
        )

    def _price(self, config: VariantConfig) -> Price | None:
        price = self.prices.get(config.hardware)
        if price is None:
            return None
        if price.carbon_table is not None:
            price = replace(price, carbon_table=str(_table_path(price.carbon_table)))
        return price.for_replica(num_cpus=config.ray.num_cpus, num_gpus=config.ray.num_gpus)

    @cached_property
    def all_policies(self) -> Mapping[str, Policy]:
        """The built-in policies and those of the file, by name."""
        own = {name: Policy(name=name, weights=weights) for name, weights in self.policies.items()}
        return {**POLICIES, **own}

    def variant_configs(self) -> Iterator[tuple[str, str, VariantConfig]]:
        """(family, variant, config) in a stable order."""
        for family_name, family in sorted(self.families.items()):
            for name, config in sorted(family.variants.items()):
                yield family_name, name, config


def home() -> Path:
    """What relative paths in a configuration are relative to.

    ``ECONOMIZER_HOME``, else the checkout that this package runs from, else the working directory.
    """
    set_home = os.environ.get("ECONOMIZER_HOME")
    if set_home:
        return Path(set_home)
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def _table_path(named: str) -> Path:
    return home() / named if named.startswith("./") else Path(named)


def located(spec: EngineSpec, base: Path) -> EngineSpec:
    """The spec with its relative paths (those with a ``./`` in front) made absolute below ``base``."""

    def locate(text: str) -> str:
        return str(base / text) if text.startswith("./") else text

    return replace(
        spec, model=locate(spec.model), python=locate(spec.python), command=tuple(locate(c) for c in spec.command)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeFile:
    """A Ray Serve config file: where Serve listens, and the Economizer application in it."""

    path: Path
    host: str
    port: int
    configuration: Configuration

    @property
    def connect_host(self) -> str:
        """The address to reach ``host`` at from this machine."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host


def load(path: Path) -> ServeFile:
    """A Serve config file, checked as far as it concerns Economizer; raises ConfigurationError."""
    content = read_yaml(path)
    applications = content.get("applications") if isinstance(content, dict) else None
    for index, application in enumerate(applications if isinstance(applications, list) else []):
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH:
            where = f"applications[{index}]"
            configuration = _parse_with_user_config(application, str(path), where)
            if mistakes := tuple(_serve_mistakes(content, application, where, configuration)):
                raise ConfigurationError(str(path), mistakes)
            http = content.get("http_options") or {}
            return ServeFile(
                path=path,
                host=http.get("host", "0.0.0.0"),  # Serve's own default in HAProxy mode
                port=http.get("port", 8000),
                configuration=configuration,
            )
    rule = f"must hold an application whose import_path is {IMPORT_PATH}"
    raise ConfigurationError(str(path), (mistake("applications", applications, rule),))


def _parse_with_user_config(application: dict[str, Any], source: str, where: str) -> Configuration:
    """The configuration in ``args``, and, where the gateway has a ``user_config``, what comes of it."""
    args = with_catalogue(application.get("args"), source=source, prefix=f"{where}.args")
    configuration = parse(args, source=source, prefix=f"{where}.args")
    deployments = application.get("deployments")
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else []):
        if isinstance(deployment, dict) and deployment.get("name") == GATEWAY and deployment.get("user_config"):
            prefix = f"{where}.deployments[{index}].user_config"
            configuration = parse_changed(args, deployment["user_config"], source=source, prefix=prefix)
    return configuration


def with_catalogue(args: Any, *, source: str = "args", prefix: str = "") -> Any:
    """``args`` without their ``catalogue``, and with the content of the file that it names laid over them.

    A file that is not there lays nothing over: nobody has published anything yet. Raises ConfigurationError.
    """
    if not isinstance(args, dict) or _CATALOGUE not in args:
        return args
    named = args[_CATALOGUE]
    if not isinstance(named, str) or not named or "://" in named:
        rule = "must be the path of a file on this machine"
        raise ConfigurationError(source, (mistake(join(prefix, (_CATALOGUE,)), named, rule),))
    others = {key: value for key, value in args.items() if key != _CATALOGUE}
    path = (home() / named).absolute()
    content = read_yaml(path, missing=_NO_FILE)
    return others if content is _NO_FILE else with_published(others, content, path)


def parse_changed(
    args: Any, user_config: Any, *, source: str = "user_config", prefix: str = "user_config"
) -> Configuration:
    """``args`` with ``user_config`` laid over it: what the router is to believe from now on, engines left alone.

    ``user_config`` has the form of ``args``, less what takes a new engine or gateway. Raises ConfigurationError.
    """
    mistakes = tuple(_user_config_mistakes(args, user_config, prefix))
    if mistakes:
        raise ConfigurationError(source, mistakes)
    return parse(laid_over(args, user_config), source=source, prefix=prefix)


def _user_config_mistakes(args: Any, user_config: Any, prefix: str) -> Iterator[Mistake]:
    if not isinstance(user_config, dict):
        yield mistake(prefix, user_config, "must be a mapping")
        return
    for key in (GATEWAY, "ledger"):
        if key in user_config:
            yield mistake(join(prefix, (key,)), user_config[key], f"belongs in args: it takes a new {key}")
    families = user_config.get("families")
    for family_name, family in (families if isinstance(families, dict) else {}).items():
        variants = family.get("variants") if isinstance(family, dict) else None
        known = args["families"].get(family_name, {}).get("variants", {})
        for name, variant in (variants if isinstance(variants, dict) else {}).items():
            at = ("families", str(family_name), "variants", str(name))
            if name not in known:
                yield mistake(join(prefix, at), name, "must be in args too: a new variant takes an engine")
            for key in _ENGINE_KEYS & set(variant if isinstance(variant, dict) else ()):
                yield mistake(join(prefix, (*at, key)), variant[key], "belongs in args: it takes a new engine")


def _serve_mistakes(
    content: dict[str, Any], application: dict[str, Any], where: str, configuration: Configuration
) -> Iterator[Mistake]:
    """What is wrong outside ``args``: Serve itself checks the rest when it deploys."""
    http = content.get("http_options") or {}
    if not isinstance(http, dict):
        yield mistake("http_options", http, "must be a mapping")
        http = {"host": "127.0.0.1"}
    host, port = http.get("host", "0.0.0.0"), http.get("port", 8000)
    if not isinstance(host, str):
        yield mistake("http_options.host", host, "must be a string")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        yield mistake("http_options.port", port, "must be a port, 1 to 65535")
    if isinstance(host, str) and host not in _LOOPBACK and configuration.admission.keys == "optional":
        rule = "must be required where others than this machine can call (http_options.host), or host be 127.0.0.1"
        yield mistake(f"{where}.args.admission.keys", configuration.admission.keys, rule)
    policy = application.get("autoscaling_policy") or {}
    function = policy.get("policy_function") if isinstance(policy, dict) else None
    scaling = [
        f"{family}@{name}"
        for family, name, config in configuration.variant_configs()
        if config.replicas.max > config.replicas.min
    ]
    if scaling and function != AUTOSCALING_POLICY:
        rule = f"must be {{policy_function: {AUTOSCALING_POLICY!r}}}, since {scaling[0]} may have more replicas"
        yield mistake(f"{where}.autoscaling_policy", policy or None, rule)


def parse(content: Any, *, source: str = "configuration", prefix: str = "") -> Configuration:
    """The configuration in already-read YAML; raises ConfigurationError with every mistake at once."""
    try:
        configuration = _ADAPTER.validate_python(content)
    except ValidationError as error:
        raise ConfigurationError(source, tuple(from_pydantic(error, prefix))) from None
    mistakes = tuple(_cross_checks(configuration, prefix))
    if mistakes:
        raise ConfigurationError(source, mistakes)
    return configuration


_ADAPTER = TypeAdapter(Configuration)


def _cross_checks(configuration: Configuration, prefix: str) -> Iterator[Mistake]:
    """Rules that hold between keys."""

    def at(*keys: str) -> str:
        return join(prefix, keys)

    if not configuration.families:
        yield mistake(at("families"), {}, "must name at least one family")
    policies = {*POLICIES, *configuration.policies}
    for name, weights in configuration.policies.items():
        try:
            Policy(name=name, weights=weights)
        except ValueError as error:
            yield mistake(at("policies", name), dict(weights), str(error))
    for name, price in configuration.prices.items():
        if price.carbon_table is not None:
            try:
                HourlyTable.read(_table_path(price.carbon_table))
            except (OSError, ValueError) as error:
                yield mistake(at("prices", name, "carbon_table"), price.carbon_table, f"must be a table: {error}")
    for family_name, family in configuration.families.items():
        path = ("families", family_name)
        if not is_name(family_name):
            yield mistake(at(*path), family_name, "a family's name must have no '@', ':' or space in it")
        if family.policy not in policies:
            yield mistake(at(*path, "policy"), family.policy, f"must be one of {sorted(policies)}")
        if family.full not in family.variants:
            yield mistake(at(*path, "full"), family.full, f"must be one of {sorted(family.variants)}")
        elif not family.variants[family.full].routed:
            rule = "must be true: it is the family's full variant, which the others are compared with"
            yield mistake(at(*path, "variants", family.full, "routed"), False, rule)
        for name, config in family.variants.items():
            if not is_name(name):
                yield mistake(at(*path, "variants", name), name, NAME_RULE)
            if config.hardware not in configuration.prices:
                rule = f"must be priced: one of {sorted(configuration.prices)} under prices"
                yield mistake(at(*path, "variants", name, "hardware"), config.hardware, rule)
            try:
                configuration.variant(family_name, name)
            except ValueError as error:
                yield mistake(at(*path, "variants", name), name, str(error))
    yield from _names_given_twice(configuration, at("families"))
    yield from _tenant_mistakes(configuration, at("admission"))


def _tenant_mistakes(configuration: Configuration, admission: str) -> Iterator[Mistake]:
    """What tenants may use must be there; keys, rates and budgets need a ledger."""
    settings = configuration.admission
    tenants = {"anonymous": settings.anonymous}
    tenants |= {f"tenants.{name}": tenant for name, tenant in settings.tenants.items()}
    for name, tenant in tenants.items():
        path = join(admission, (name,))
        if tenant.policy is not None and tenant.policy not in configuration.all_policies:
            rule = f"must be one of {sorted(configuration.all_policies)}"
            yield mistake(f"{path}.policy", tenant.policy, rule)
        for family in tenant.families or ():
            if family not in configuration.families:
                yield mistake(f"{path}.families", family, f"must be among {sorted(configuration.families)}")
        if configuration.ledger is None and tenant != Tenant():
            yield mistake(path, name, "needs a ledger, which is null: limits hold over all gateways by it")
    if configuration.ledger is None and settings.keys == "required":
        yield mistake(f"{admission}.keys", settings.keys, "needs a ledger, which is null: keys are kept in it")
    if configuration.ledger is None and configuration.savings.share > 0:
        rule = "needs a ledger, which is null: the hold-out is read from it"
        yield mistake(admission.replace("admission", "savings.share"), configuration.savings.share, rule)


def _names_given_twice(configuration: Configuration, families: str) -> Iterator[Mistake]:
    """Families, aliases and LoRA adapters are all model names: none may be another's, or look like a pin."""
    taken: dict[str, str] = {name: name for name in configuration.families}
    for family_name, family in configuration.families.items():
        loras = [lora for _, config in sorted(family.variants.items()) for lora in config.loras]
        path = join(families, (family_name,))
        named = [(f"{path}.aliases", alias) for alias in family.aliases]
        named += [(f"{path}.variants.*.loras", lora) for lora in dict.fromkeys(loras)]
        for place, name in named:
            if not name or "@" in name:
                yield mistake(place, name, "must have no '@' in it, and not be empty")
            if name in taken:
                yield mistake(place, name, f"must be unique: {taken[name]} has that name already")
            taken[name] = family_name
