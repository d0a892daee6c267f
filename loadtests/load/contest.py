"""The two fleets of a comparison and how they are set up, from one configuration; and the order in which they run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from economizer.config import IMPORT_PATH, Configuration, home, located, parse, with_catalogue
from economizer.energy.choose import MeterSettings
from economizer.energy.cpu_power import IDLE_SHARE, TYPICAL, CpuPower, cpu_power
from economizer.errors import require
from economizer.yaml_files import read_yaml
from stand import free_ports

from load import sizing
from load.delivered import Qualities, Quality
from load.fleets import Fleet, bare, engine_words, gateway
from load.spending import Machine

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """A family of a configuration, with as many ``engines`` of the full model as ours may have awake.

    ``args`` are those of the Economizer application with its catalogue laid over them, ``configuration`` the same as
    types.
    """

    args: Mapping[str, Any]
    configuration: Configuration
    family: str
    engines: int

    @classmethod
    def read(cls, file: Path, family: str | None, engines: int) -> Contest:
        """From a Serve config. Raises ConfigurationError, and ValueError where it cannot be compared here."""
        content = read_yaml(file)
        found = [each for each in content["applications"] if each.get("import_path") == IMPORT_PATH]
        require(bool(found), "--config", str(file), f"must have an application with the import_path {IMPORT_PATH}")
        args = with_catalogue(found[0]["args"], source=str(file))
        configuration = parse(args, source=str(file))
        families = sorted(configuration.families)
        rule = f"must be one of {families}"
        require(family in families or (family is None and len(families) == 1), "--family", family, rule)
        contest = cls(
            args=args,
            configuration=configuration,
            family=family or families[0],
            engines=engines,
        )
        contest._require_room()
        return contest

    def _require_room(self) -> None:
        ray = self._full.ray
        require(ray.num_gpus == 0, "num_gpus", ray.num_gpus, "must be 0: fleets are metered by their CPU time")
        require(self.engines >= 1, "--engines", self.engines, "must be 1 or more")
        needed_gib = max(each.ray.memory_gib for each in self.configuration.families[self.family].variants.values())
        has_gib = sizing.memory_gib(memory_free_gib(), self.engines)
        rule = f"must leave {needed_gib:g} GiB for each, and {has_gib:g} GiB are free for each: end other programs"
        require(has_gib >= needed_gib, "--engines", self.engines, rule)

    @property
    def full(self) -> str:
        """The full model's name."""
        return self.configuration.families[self.family].full

    @property
    def _full(self) -> Any:
        return self.configuration.families[self.family].variants[self.full]

    @property
    def variants(self) -> list[str]:
        """The gated ones, by name."""
        return sorted(sizing.gated(self.configuration, self.family))

    @property
    def batch(self) -> int:
        """Requests that one engine of the full model runs at once."""
        return int(self._full.concurrency_max)

    @property
    def gateway_cores(self) -> float:
        """What is booked for all that is no engine: gateways and the bookkeeper."""
        settings = self.configuration.gateway
        return settings.num_cpus * (settings.replicas + (self.configuration.ledger is not None))

    def machine(self) -> Machine:
        """What a core draws and costs here, as the configuration and the shipped table have it."""
        ledger = self.configuration.ledger
        power = _power(ledger.meter if ledger is not None else MeterSettings())
        price = self.configuration.variant(self.family, self.full).price
        assert price is not None  # parse() has seen to it
        return Machine.of(power, price, self._full.ray.num_cpus)

    def folder(self, variant: str) -> Path:
        """Where a variant's checkpoint lies."""
        return Path(located(self.configuration.families[self.family].variants[variant].engine, home()).model)

    def published(self, variants: Sequence[str]) -> Qualities:
        """The variants' quality as their cards have it."""
        cards = {name: self.configuration.variant(self.family, name).quality for name in variants}
        return Qualities(
            source="published",
            of={name: Quality(value=card.score, low=card.low) for name, card in cards.items() if card is not None},
        )

    @contextmanager
    def alone(self, variant: str, engines: int) -> Iterator[Fleet]:
        """Bare engines of one variant, and nothing else."""
        spec = self.configuration.families[self.family].variants[variant].engine
        with (
            tempfile.TemporaryDirectory(prefix="eco-bench-") as name,
            bare(spec, model=self.family, count=engines, folder=Path(name)) as fleet,
        ):
            yield fleet

    @contextmanager
    def ours(self, requests: sizing.Requests) -> Iterator[Fleet]:
        """Economizer with every gated variant, set up for such requests, with a ledger of its own."""
        with tempfile.TemporaryDirectory(prefix="eco-bench-") as name:
            folder = Path(name)
            (port,) = free_ports(1)
            ledger = f"sqlite:///{folder / 'ledger.db'}"
            file = folder / "savings.yaml"
            content = sizing.serve_file(
                self.args,
                family=self.family,
                requests=requests,
                engines=self.engines,
                free_gib=memory_free_gib(),
                port=port,
                ledger={"url": ledger, "spool": str(folder / "spool")},
            )
            file.write_text(yaml.safe_dump(content))
            with gateway(file, port=port, engine=engine_words(self._full.engine), ledger=ledger) as fleet:
                yield fleet


def _power(settings: MeterSettings) -> CpuPower:
    active_w, idle_w = settings.watts_per_core, settings.watts_per_core_idle
    if active_w is None:
        return cpu_power(_CPUINFO) or TYPICAL
    idle_w = IDLE_SHARE * active_w if idle_w is None else idle_w
    return CpuPower(active_w=active_w, idle_w=idle_w, source="the configuration's watts_per_core")


def memory_free_gib() -> float:
    """What programs may still take of this machine's memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))
