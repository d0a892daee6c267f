"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _amounts(prefix: str = "") -> tuple[sa.Column[int], ...]:
    return tuple(sa.Column(f"{prefix}{name}", sa.BigInteger) for name in ("energy_uj", "cost_uusd", "carbon_ug"))


def _big(*names: str) -> tuple[sa.Column[int], ...]:
    return tuple(sa.Column(name, sa.BigInteger) for name in names)


def _counts(*names: str) -> tuple[sa.Column[int], ...]:
    return tuple(sa.Column(name, sa.BigInteger, nullable=False) for name in names)


def _texts(*names: str) -> tuple[sa.Column[str], ...]:
    return tuple(sa.Column(name, sa.String, nullable=False) for name in names)


def upgrade() -> None:
    op.create_table(
        "windows",
        *_texts("engine"),
        *_counts("number"),
        *_texts("variant"),
        sa.Column("began_s", sa.Double, nullable=False),
        sa.Column("ended_s", sa.Double, nullable=False),
        *_texts("state"),
        sa.Column("seconds", sa.Double, nullable=False),
        *_big("measured_uj"),
        *_counts("idle_uj"),
        *_texts("method"),
        sa.Column("uncertainty", sa.Double),
        *_texts("note"),
        sa.Column("last", sa.Boolean, nullable=False),
        *_big("steps", "prefill_tokens", "decode_tokens"),
        *_amounts(),
        sa.PrimaryKeyConstraint("engine", "number"),
    )
    op.create_index("ix_windows_ended_s", "windows", ["ended_s"])
    op.create_table(
        "accounts",
        sa.Column("hour", sa.Integer, nullable=False),
        *_texts("tenant", "family", "variant", "kind"),
        *_amounts(),
        *_counts("requests", "prompt_tokens", "cached_tokens", "output_tokens"),
        sa.PrimaryKeyConstraint("hour", "tenant", "family", "variant", "kind"),
    )
    op.create_table(
        "meters",
        sa.Column("hour", sa.Integer, nullable=False),
        *_texts("engine", "family", "variant", "method"),
        *_counts("windows", "gaps", "metered_us", "unmeasured_us"),
        *_big("measured_uj", "cost_uusd", "carbon_ug"),
        sa.PrimaryKeyConstraint("hour", "engine"),
    )
    _create_requests()
    op.create_table("batches", *_texts("id"), sa.Column("written_s", sa.Double, nullable=False), _key("id"))
    op.create_index("ix_batches_written_s", "batches", ["written_s"])
    op.create_table("coefficients", *_texts("key"), sa.Column("numbers", sa.JSON, nullable=False), _key("key"))
    op.create_table(
        "api_keys",
        *_texts("id", "tenant", "role", "hash", "prefix"),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("expires_s", sa.Double),
        sa.Column("revoked_s", sa.Double),
        sa.Column("replaced_by", sa.String),
        *_texts("note"),
        _key("id"),
        sa.UniqueConstraint("hash"),
    )
    op.create_table("meta", *_texts("name"), *_counts("number"), _key("name"))


def _key(name: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(name)


def _create_requests() -> None:
    op.create_table(
        "requests",
        *_texts("request_id", "tenant", "family", "variant"),
        sa.Column("ended_s", sa.Double, nullable=False),
        sa.Column("booked", sa.Boolean, nullable=False),
        *_amounts("usage_"),
        *_amounts("idle_"),
        *_amounts("lost_"),
        sa.Column("variance_uj2", sa.Double, nullable=False),
        *(sa.Column(name, sa.String) for name in ("method", "key_id", "engine", "endpoint")),
        sa.Column("stream", sa.Boolean),
        sa.Column("outcome", sa.String),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.String),
        sa.Column("attempts", sa.Integer),
        *(sa.Column(name, sa.Double) for name in ("began_s", "ttft_s", "tpot_s")),
        *_big("prompt_tokens", "cached_tokens", "output_tokens"),
        *(sa.Column(name, sa.Double) for name in ("batch", "predicted_ttft_s", "predicted_e2e_s")),
        *_big("predicted_energy_uj", "predicted_cost_uusd"),
        *_amounts("estimate_"),
        sa.Column("full_variant", sa.String),
        *_amounts("full_"),
        *_big("full_low_uj", "full_high_uj", "full_low_uusd", "full_high_uusd"),
        *(sa.Column(name, sa.String) for name in ("arm", "degraded", "policy", "terms", "refusals")),
        _key("request_id"),
    )
    op.create_index("ix_requests_ended_s", "requests", ["ended_s", "request_id"])
    op.create_index("ix_requests_tenant", "requests", ["tenant", "ended_s", "request_id"])
