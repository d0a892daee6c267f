"""A machine of small files: what /proc and /sys/class/powercap say, below a folder of a test's own."""

from pathlib import Path


class MachineFiles:
    """Ticks are hundredths of a second, as Linux counts for programs."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.powercap = folder / "powercap"
        self.proc.mkdir()
        self.powercap.mkdir()

    def process(self, pid: int, *, parent: int, own: int = 0, waited: int = 0, name: str = "engine") -> None:
        """A process with ``own`` ticks of its threads and ``waited`` ticks of children that it waited for."""
        (self.proc / str(pid)).mkdir(exist_ok=True)
        times = f"{own - own // 3} {own // 3} {waited - waited // 4} {waited // 4}"
        line = f"{pid} ({name}) S {parent} 1 1 0 -1 4194560 9 9 9 9 {times} 20 0 9 0 777 1 2 3\n"
        (self.proc / str(pid) / "stat").write_text(line)

    def ends(self, pid: int) -> None:
        (self.proc / str(pid) / "stat").unlink()
        (self.proc / str(pid)).rmdir()

    def cpus(self, count: int, *, busy: int = 0) -> None:
        """``count`` CPUs that were at work for ``busy`` ticks together, a multiple of 5."""
        part = busy // 5
        times = f"{part} {part} {part} {9 * busy} {8 * busy} {part} {part} {7 * busy} {6 * busy} {5 * busy}"
        lines = [f"cpu  {times}", *(f"cpu{number} {times}" for number in range(count)), "intr 12 0 1", "btime 5"]
        (self.proc / "stat").write_text("\n".join(lines))

    def zone(self, place: str, name: str, energy_uj: int, *, wraps_at_uj: int = 262_143_328_850) -> None:
        """A RAPL counter, such as ``intel-rapl:0`` or ``intel-rapl:0/intel-rapl:0:1``."""
        zone = self.powercap / place
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (zone / "max_energy_range_uj").write_text(f"{wraps_at_uj}\n")
