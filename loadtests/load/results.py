"""Results of a run, a folder of files: ``outcomes.jsonl``, written line by line as outcomes come, and Parquet.

The first line of the JSONL file is the run's :class:`Header`, each later one an :class:`Outcome`; so whatever ends a
run, what was measured until then is on disk. In Parquet the header is the schema's metadata, and terms are columns of
their own. Neither holds a word of a prompt or an answer.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, get_args, get_type_hints

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from processes import machine

from load.types import Outcome, Planned, Terms

JSONL, PARQUET = "outcomes.jsonl", "outcomes.parquet"
_TERMS = "terms."
_METADATA = b"economizer.loadtest"
_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was: ``settings`` as its user gave them, ``facts`` of the plan that came of them.

    Runs of the same ``plan_sha256`` sent the same requests at the same times on the same terms. ``commit`` ends in
    ``-dirty`` where the working tree differs from it; None outside of a git checkout.
    """

    tool: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    requests: int
    plan_sha256: str
    machine: str
    commit: str | None
    began: str  # ISO 8601, UTC


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What a file of results holds. ``torn`` says that its last line was not written to its end."""

    header: Header
    outcomes: tuple[Outcome, ...]
    torn: bool = False


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    run: Header


def header(tool: str, plan: Sequence[Planned], *, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Header:
    """The header of a run of this plan that begins now, here."""
    return Header(
        tool=tool,
        settings=dict(settings),
        facts=dict(facts),
        requests=len(plan),
        plan_sha256=hashlib.sha256(msgspec.json.encode(list(plan))).hexdigest(),
        machine=machine(),
        commit=_commit(),
        began=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def new_folder(path: Path) -> Path:
    """Make the folder of a run's results; raises FileExistsError where there is one: results are not overwritten."""
    if path.exists():
        raise FileExistsError(f"{path} is there already: name a folder that is not, results are never overwritten")
    path.mkdir(parents=True)
    return path


class Writer:
    """Writes outcomes as they come; a context manager. Raises FileExistsError where the file is there already."""

    def __init__(self, path: Path, run: Header) -> None:
        self._file: IO[bytes] = path.open("xb")
        self._encoder = msgspec.json.Encoder()
        self._put(_Line(run=run))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, outcome: Outcome) -> None:
        """Add an outcome; it is with the operating system when this returns."""
        self._put(outcome)

    def _put(self, what: msgspec.Struct) -> None:
        self._file.write(self._encoder.encode(what) + b"\n")
        self._file.flush()


def read(path: Path) -> Results:
    """Results of a file, or of a run's folder; raises ValueError where it holds none, FileNotFoundError for none."""
    if path.is_dir():
        path = path / JSONL if (path / JSONL).exists() else path / PARQUET
    return _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)


def write_parquet(path: Path, run: Header, outcomes: Sequence[Outcome]) -> None:
    """Write all outcomes; raises FileExistsError where the file is there already."""
    columns: dict[str, list[Any]] = {name: [] for name in _columns()}
    for outcome in outcomes:
        row = msgspec.to_builtins(outcome)
        row |= {_TERMS + name: value for name, value in row.pop("terms").items()}
        for name, values in columns.items():
            values.append(row[name])
    schema = pa.schema(list(_columns().items()), metadata={_METADATA: msgspec.json.encode(run)})
    with path.open("xb") as file:
        pq.write_table(pa.table(columns, schema=schema), file)


def _columns() -> dict[str, Any]:
    """The columns of Parquet and their types: those of an outcome, its terms one by one."""
    columns: dict[str, Any] = {}
    for name, hint in get_type_hints(Outcome).items():
        fields = {_TERMS + of: inner for of, inner in get_type_hints(Terms).items()} if hint is Terms else {name: hint}
        columns |= {field: _ARROW[(get_args(inner) or (inner,))[0]] for field, inner in fields.items()}
    return columns


def _read_parquet(path: Path) -> Results:
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if _METADATA not in metadata:
        raise ValueError(f"{path} has no {_METADATA.decode()} in its metadata: must be results of a load test")
    outcomes = []
    for row in table.to_pylist():
        terms = {name.removeprefix(_TERMS): row.pop(name) for name in list(row) if name.startswith(_TERMS)}
        outcomes.append(msgspec.convert(row | {"terms": terms}, Outcome))
    return Results(header=msgspec.json.decode(metadata[_METADATA], type=Header), outcomes=tuple(outcomes))


def _read_jsonl(path: Path) -> Results:
    first, *lines = path.read_bytes().split(b"\n")
    torn = bool(lines and lines.pop())  # what follows the last line's end; only a write that was cut short leaves any
    try:
        run = msgspec.json.decode(first, type=_Line).run
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} line 1 is not a run's header ({error}): must be results of a load test") from None
    decoder = msgspec.json.Decoder(Outcome)
    outcomes = []
    for number, line in enumerate(lines, start=2):
        try:
            outcomes.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} line {number} is not an outcome: {error}") from None
    return Results(header=run, outcomes=tuple(outcomes), torn=torn)


def _commit() -> str | None:
    """The commit of this checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
