"""The tables of the ledger, as SQLite and PostgreSQL both have them. ``migrations/`` makes them.

::

    windows   one metered window each, split once       requests      one request each: its booking and its shares
    accounts  sums by hour, tenant, variant and kind    batches       what was written already
    meters    sums by hour and engine                   coefficients  what was learnt, by variant and meter
    api_keys  who may call                              meta          counters

Amounts are integers. Moments are seconds since the epoch, as floats, so that they come back as they were.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table

AMOUNTS = ("energy_uj", "cost_uusd", "carbon_ug")
COUNTS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
HOUR_S = 3600


def _amounts(prefix: str = "") -> tuple[Column[int], ...]:
    return tuple(Column(f"{prefix}{name}", BigInteger) for name in AMOUNTS)


METADATA = MetaData()

WINDOWS = Table(
    "windows",
    METADATA,
    Column("engine", String, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("variant", String, nullable=False),
    Column("began_s", Double, nullable=False),
    Column("ended_s", Double, nullable=False, index=True),
    Column("state", String, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("measured_uj", BigInteger),
    Column("idle_uj", BigInteger, nullable=False),
    Column("method", String, nullable=False),
    Column("uncertainty", Double),
    Column("note", String, nullable=False),
    Column("last", Boolean, nullable=False),
    Column("steps", BigInteger),
    Column("prefill_tokens", BigInteger),
    Column("decode_tokens", BigInteger),
    *_amounts(),
    Column("epoch", String),  # of the bookkeeper that split it; null where that was not noted yet
)

ACCOUNTS = Table(
    "accounts",
    METADATA,
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("tenant", String, primary_key=True),
    Column("family", String, primary_key=True),
    Column("variant", String, primary_key=True),
    Column("kind", String, primary_key=True),
    *_amounts(),
    *(Column(name, BigInteger, nullable=False) for name in COUNTS),
)

METERS = Table(
    "meters",
    METADATA,
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("engine", String, primary_key=True),
    Column("family", String, nullable=False),
    Column("variant", String, nullable=False),
    Column("method", String, nullable=False),
    Column("windows", BigInteger, nullable=False),
    Column("gaps", BigInteger, nullable=False),
    Column("metered_us", BigInteger, nullable=False),
    Column("unmeasured_us", BigInteger, nullable=False),
    Column("measured_uj", BigInteger),
    Column("cost_uusd", BigInteger),
    Column("carbon_ug", BigInteger),
)

REQUESTS = Table(
    "requests",
    METADATA,
    Column("request_id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("family", String, nullable=False),
    Column("variant", String, nullable=False),
    Column("ended_s", Double, nullable=False),  # of its last window, until it is booked
    Column("booked", Boolean, nullable=False),
    *_amounts("usage_"),
    *_amounts("idle_"),
    *_amounts("lost_"),
    Column("variance_uj2", Double, nullable=False),
    Column("method", String),
    # From here on a booking's, and null before it came.
    Column("key_id", String),
    Column("engine", String),
    Column("endpoint", String),
    Column("stream", Boolean),
    Column("outcome", String),
    Column("status", Integer),
    Column("error", String),
    Column("attempts", Integer),
    Column("began_s", Double),
    Column("ttft_s", Double),
    Column("tpot_s", Double),
    Column("prompt_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("batch", Double),
    Column("predicted_ttft_s", Double),
    Column("predicted_e2e_s", Double),
    Column("predicted_energy_uj", BigInteger),
    Column("predicted_cost_uusd", BigInteger),
    *_amounts("estimate_"),
    Column("full_variant", String),
    *_amounts("full_"),
    Column("full_low_uj", BigInteger),
    Column("full_high_uj", BigInteger),
    Column("full_low_uusd", BigInteger),
    Column("full_high_uusd", BigInteger),
    Column("arm", String),
    Column("degraded", String),
    Column("policy", String),
    Column("terms", String),
    Column("refusals", String),
    Index("ix_requests_ended_s", "ended_s", "request_id"),
    Index("ix_requests_tenant", "tenant", "ended_s", "request_id"),
)

BATCHES = Table(
    "batches",
    METADATA,
    Column("id", String, primary_key=True),
    Column("written_s", Double, nullable=False, index=True),
)

COEFFICIENTS = Table(
    "coefficients",
    METADATA,
    Column("key", String, primary_key=True),
    Column("numbers", JSON, nullable=False),
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("role", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    Column("prefix", String, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double),
    Column("revoked_s", Double),
    Column("replaced_by", String),
    Column("note", String, nullable=False),
)

META = Table(
    "meta",
    METADATA,
    Column("name", String, primary_key=True),
    Column("number", BigInteger, nullable=False),
)
