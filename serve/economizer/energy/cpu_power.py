"""What a core of this machine's CPU draws, from the vendors' figures in cpu_tdp.csv."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from math import inf
from pathlib import Path

from economizer.errors import require

# A waiting core's part of a working one's power. Servers in recent SPECpower_ssj2008 results draw near a fifth of their
# full power when idle (Tröpgen et al., 16 Years of SPEC Power, 2024, arXiv 2411.07062).
IDLE_SHARE = 0.2

_TABLE = Path(__file__).with_name("cpu_tdp.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuPower:
    """Watts of one logical CPU while it works and while it waits, and where the figures are from.

    A logical CPU is what Linux and Ray count: a hardware thread where two share a core. ``uncertainty`` is the share of
    what a core really uses by which the model may be wrong. It is 0.5 for a part whose TDP is known: codecarbon's
    published RAPL logs of an EPYC 8024P and two Xeon E5-2620 v3 lie between 0.5 and 1 times this model of their TDP at
    loads of 20 % and more (full load stays below the TDP, and half load is above a straight line).
    """

    active_w: float
    idle_w: float
    source: str
    uncertainty: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.active_w < inf, "active_w", self.active_w, "must be above 0 and finite")
        require(0 <= self.idle_w <= self.active_w, "idle_w", self.idle_w, "must be between 0 and active_w")


# The median of the table's generations, from 2.3 to 11.9 W a core: better than no figure where only ratios matter.
TYPICAL = CpuPower(active_w=5.5, idle_w=1.1, source="typical: this CPU is unknown, set watts_per_core", uncertainty=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A line of the table. ``typical_of`` is the generation that it stands for where a cloud hides the model."""

    name: str
    tdp_w: float
    cores: int
    typical_of: str


def cpu_power(cpuinfo: Path) -> CpuPower | None:
    """The power of a CPU as /proc/cpuinfo describes it, or None where the table has neither it nor its generation.

    A working core draws its share of the package's TDP. Where two threads share a core, each is half of one: both busy
    draw what the core does. Where a virtual machine hides that (as many cores as siblings), a CPU counts as a whole
    core, which is the most it can draw.
    """
    about = _about(cpuinfo)
    name, generation = _plain(about.get("model name", "")), _generation(about)
    parts = _parts()
    named = next((part for part in parts if f" {part.name.lower()} " in f" {name} "), None)
    part = named or next((part for part in parts if part.typical_of == generation), None)
    if part is None:
        return None
    threads = int(about.get("siblings", 1)) / int(about.get("cpu cores", 1))
    active_w = part.tdp_w / part.cores / threads
    source = f"{part.tdp_w:g} W / {part.cores} cores of {part.name}"
    if threads != 1:
        source += f", {threads:g} threads a core"
    if named is None:
        source += f", typical of {generation}, whose model is hidden or unlisted"
    return CpuPower(active_w=active_w, idle_w=IDLE_SHARE * active_w, source=source)


def _about(cpuinfo: Path) -> dict[str, str]:
    """The first CPU's lines; machines with several kinds of cores list the fast ones first."""
    try:
        first, _, _ = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _plain(name: str) -> str:
    """``intel xeon platinum 8480+`` for ``Intel(R) Xeon(R) Platinum 8480+``."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b", " ", name.lower()).split()
    # AMD's P parts are those without one, for a single socket.
    return re.sub(r"\b(epyc \d{4})p\b", r"\1", " ".join(words))


def _generation(about: dict[str, str]) -> str:
    """``AuthenticAMD/25/17``: vendor, family and model of x86; ``0x41/0xd0c``: implementer and part of ARM."""
    x86, arm = ("vendor_id", "cpu family", "model"), ("CPU implementer", "CPU part")
    return "/".join(about.get(key, "") for key in (x86 if "vendor_id" in about else arm))


def _parts() -> list[_Part]:
    with _TABLE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [
            _Part(
                name=row["name"], tdp_w=float(row["tdp_w"]), cores=int(row["cores"]), typical_of=row["typical_of"] or ""
            )
            for row in rows
        ]
