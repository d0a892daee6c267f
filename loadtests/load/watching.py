"""What a running Economizer holds: memory, descriptors, processes, threads and queues of each of its parts.

Everything is read from outside: /proc, the gateway's own pages, HAProxy's admin socket, the ledger's database.
"""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from economizer.autoscaling.planner import GATEWAY, LEDGER
from economizer.engine.guard import descendants
from economizer.ledger.schema import REQUESTS
from processes import command_line
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError

GATEWAY_GROUP, BOOKS_GROUP, HAPROXY_GROUP, CONTROLLER_GROUP = "gateway", "bookkeeper", "haproxy", "controller"
REPLICAS_GROUP, ENGINES_GROUP, GUARDS_GROUP, RAY_GROUP = "replicas", "engines", "guards", "ray"
QUEUES_GROUP = "queues"
FAST_ENGINE, VLLM = "fast_engine.py", "vllm.entrypoints.openai.api_server"

_VLLM_CHILD = "VLLM::"  # what vLLM calls its own processes
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_HTTP_S = 10.0
_SOCKET_S = 5.0
_THREADS = 17  # of the fields after the command's name in /proc/PID/stat
_WORKER = "ray::ServeReplica:economizer:"
_GROUPS = (
    (f"{_WORKER}{GATEWAY}", GATEWAY_GROUP),
    (f"{_WORKER}{LEDGER}", BOOKS_GROUP),
    (_WORKER, REPLICAS_GROUP),
    ("ray::ServeController", CONTROLLER_GROUP),
)

Values = dict[str, float]


def group_of(words: str) -> str:
    """Which part of Economizer a process is, by its command line."""
    for beginning, group in _GROUPS:
        if words.startswith(beginning):
            return group
    if "/guard.py " in words:
        return GUARDS_GROUP
    if FAST_ENGINE in words or VLLM in words or words.startswith(_VLLM_CHILD):
        return ENGINES_GROUP
    return HAPROXY_GROUP if "/haproxy " in words else RAY_GROUP


def engines_below(root: int) -> list[int]:
    """The engines that run below a process now, each without its own children: those whose parent is a guard."""
    found = []
    for pid in descendants(root):
        try:
            if group_of(command_line(pid)) == ENGINES_GROUP and group_of(command_line(parent_of(pid))) == GUARDS_GROUP:
                found.append(pid)
        except OSError:
            continue  # it ended since it was listed
    return sorted(found)


def parent_of(pid: int) -> int:
    """A process's parent; raises OSError where it is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Watch:
    """Takes samples of a running Economizer; ``root`` is the process that everything hangs below.

    What cannot be read is missing in a sample, never 0.
    """

    def __init__(self, *, root: int, url: str, ledger: str, spool: Path) -> None:
        self._root = root
        self._url = url
        self._spool = spool
        self._database = create_engine(ledger)

    def sample(self) -> Values:
        """``GROUP QUANTITY`` -> value, now."""
        return {**self.held(), **{f"{QUEUES_GROUP} {name}": value for name, value in self.queues().items()}}

    def held(self) -> Values:
        """Processes, threads, descriptors and resident memory (MB, 10^6 bytes) by group."""
        found: Values = {}
        for pid in descendants(self._root):
            try:
                group, held = group_of(command_line(pid)), _held(pid)
            except (OSError, IndexError):
                continue  # it ended since it was listed
            for quantity, value in held.items():
                name = f"{group} {quantity}"
                found[name] = found.get(name, 0.0) + value
        return found

    def engines(self) -> list[int]:
        """The processes of engines that run now."""
        return engines_below(self._root)

    def ready(self) -> dict[str, str]:
        """The state that each engine's replica reports; empty where the gateway does not answer."""
        try:
            engines = self._page("/readyz")["engines"]
        except (OSError, ValueError, LookupError):
            return {}
        return {str(engine["replica"]): str(engine["state"]) for engine in engines}

    def queues(self) -> Values:
        """How much waits or is under way, by where it is."""
        found: Values = {}
        readers: tuple[Callable[[], Mapping[str, float]], ...] = (self._of_gateway, self._of_haproxy, self._of_spool)
        for read in readers:
            try:
                found |= read()
            except (OSError, ValueError, LookupError, SQLAlchemyError):
                continue
        return found

    def close(self) -> None:
        self._database.dispose()

    def _of_gateway(self) -> Values:
        """Requests in the gateway, in the engines and on their way into the books.

        The books are read after the gateway's counter, so that nothing is counted as waiting that is booked already.
        """
        engines = self._page("/readyz")["engines"]
        counted = list(_counters(self._text("/metrics")))
        ended = sum(value for name, value in counted if name == "economizer_requests_total")
        with self._database.connect() as connection:
            booked = connection.execute(select(func.count()).where(REQUESTS.c.booked)).scalar_one()
        return {
            "in_gateway": sum(value for name, value in counted if name == "economizer_in_flight"),
            "in_engines": sum((engine["running"] or 0) + (engine["waiting"] or 0) for engine in engines),
            "unbooked": max(0.0, ended - booked),
        }

    def _of_haproxy(self) -> Values:
        """HAProxy's client connections and the requests that wait in it for a gateway."""
        path = self._haproxy_socket()
        (header, *lines) = _ask(path, "show stat").splitlines()
        place = header.removeprefix("# ").split(",").index("qcur")
        waiting = [line.split(",")[place] for line in lines if line]
        info = dict(line.partition(": ")[::2] for line in _ask(path, "show info").splitlines())
        return {
            "in_haproxy": float(sum(int(number) for number in waiting if number)),
            "haproxy_connections": float(info["CurrConns"]),
        }

    def _of_spool(self) -> Values:
        return {"spooled": float(sum(1 for path in self._spool.rglob("*") if path.is_file()))}

    def _haproxy_socket(self) -> Path:
        """Beside its configuration, which is the word after ``-f``."""
        for pid in descendants(self._root):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if words[0].endswith("/haproxy") and "-f" in words:
                return Path(words[words.index("-f") + 1]).with_name("admin.sock")
        raise FileNotFoundError("no HAProxy runs")

    def _page(self, path: str) -> Any:
        return json.loads(self._text(path))

    def _text(self, path: str) -> str:
        with urllib.request.urlopen(f"{self._url}{path}", timeout=_HTTP_S) as page:
            return str(page.read().decode())


def _held(pid: int) -> Values:
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "processes": 1.0,
        "threads": float(stat[_THREADS]),
        "fds": float(len(os.listdir(f"/proc/{pid}/fd"))),  # noqa: PTH208 - a Path for each descriptor costs more
        "rss_mb": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6,
    }


def _counters(page: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            yield sample.name, sample.value


def _ask(path: Path, command: str) -> str:
    """What HAProxy answers on its admin socket; raises OSError where it does not."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(_SOCKET_S)
        admin.connect(str(path))
        admin.sendall(f"{command}\n".encode())
        answer = b""
        while received := admin.recv(65_536):
            answer += received
    return answer.decode(errors="replace")
