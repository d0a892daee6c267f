"""API keys: how one is made, what is kept of it, and how the one that a request presents is looked up.

A key reads ``eco-<id>-<secret>``. It is shown once, when it is made; only its SHA-256 is kept. A fast hash without salt
is right here, where it would be wrong for a password: the secret is 256 random bits, so nobody can try all of them,
no two keys are alike, and one hash per request costs a microsecond instead of the tenths of a second of a slow one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf, isfinite
from typing import Literal

from economizer.admission.tenants import require_tenant
from economizer.errors import InvalidRequest, KeyRefused, require

Role = Literal["tenant", "admin"]

_PREFIX = "eco-"
_ID_BYTES = 6  # written as 12 hexadecimal digits: among 10,000 keys, two alike have a chance of 1 in 5 million
_SECRET_BYTES = 32  # written as 43 URL-safe characters
_ID = re.compile(r"[0-9a-z]{1,32}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRecord:
    """What is kept of a key: never its text.

    ``hash`` is the hexadecimal SHA-256 of the whole text, ``prefix`` its beginning as lists show it, without the
    secret. Times are seconds since the epoch. An ``admin`` may read and change what belongs to all tenants.
    ``replaced_by`` is the id of the key that a rotation made in its place.
    """

    id: str
    tenant: str
    role: Role
    hash: str
    prefix: str
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None
    replaced_by: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        require(_ID.fullmatch(self.id) is not None, "id", self.id, "must be 1 to 32 of a-z and 0-9")
        require_tenant(self.tenant)
        require(self.role in ("tenant", "admin"), "role", self.role, "must be tenant or admin")
        require(_HASH.fullmatch(self.hash) is not None, "hash", self.hash, "must be 64 hexadecimal digits")
        for name in ("created_s", "expires_s", "revoked_s"):
            value = getattr(self, name)
            require(value is None or isfinite(value), name, value, "must be finite")

    def usable(self, now_s: float) -> bool:
        """Neither revoked nor expired. A revocation holds from when it is known, whatever its time says."""
        return self.revoked_s is None and now_s < (inf if self.expires_s is None else self.expires_s)


def hash_of(text: str) -> str:
    """The hexadecimal SHA-256 of a key's whole text."""
    return sha256(text.encode()).hexdigest()


def looks_like_ours(text: str) -> bool:
    """Whether a text has the shape of a key of ours. Others come from clients that always send some key."""
    return text.startswith(_PREFIX)


def new_key(
    tenant: str, role: Role, *, now_s: float, expires_s: float | None = None, note: str = ""
) -> tuple[str, KeyRecord]:
    """A new key's text, which is kept nowhere, and its record. ValueError where it would have expired already."""
    if expires_s is not None:
        require(expires_s > now_s, "expires_s", expires_s, f"must be after now ({now_s})")
    key_id = secrets.token_hex(_ID_BYTES)
    prefix = f"{_PREFIX}{key_id}"
    text = f"{prefix}-{secrets.token_urlsafe(_SECRET_BYTES)}"
    record = KeyRecord(
        id=key_id,
        tenant=tenant,
        role=role,
        hash=hash_of(text),
        prefix=prefix,
        created_s=now_s,
        expires_s=expires_s,
        note=note,
    )
    return text, record


def rotate(old: KeyRecord, *, now_s: float, grace_s: float) -> tuple[str, KeyRecord, KeyRecord]:
    """A new key in the place of an old one: its text, its record, and the old key's record with its end.

    The new key ends when the old one was to. The old one works for ``grace_s`` more, or until then.

    Raises:
        InvalidRequest: where the old key no longer works, or was rotated already.
    """
    require(0 <= grace_s < inf, "grace_s", grace_s, "must be 0 or more and finite")
    if not old.usable(now_s):
        raise InvalidRequest(f"the key {old.id} was revoked or has expired: make a new one")
    if old.replaced_by is not None:
        raise InvalidRequest(f"the key {old.id} was rotated already, to {old.replaced_by}: rotate that one")
    text, new = new_key(old.tenant, old.role, now_s=now_s, expires_s=old.expires_s, note=old.note)
    ends_s = now_s + grace_s if old.expires_s is None else min(old.expires_s, now_s + grace_s)
    return text, new, replace(old, expires_s=ends_s, replaced_by=new.id)


def presented(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers, whose names are in lower case: a bearer token, ``x-api-key`` or ``api-key``."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    bearer = token if scheme.lower() == "bearer" else ""
    texts = (bearer, headers.get("x-api-key", ""), headers.get("api-key", ""))
    return next((text.strip() for text in texts if text.strip()), None)


class KeyRing:
    """All keys, found by the hash of what is presented: the work does not depend on how many there are, and its time
    tells nothing of a secret, since nobody can choose a text by its hash."""

    def __init__(self, records: Iterable[KeyRecord]) -> None:
        self._by_hash = {record.hash: record for record in records}

    def find(self, text: str, now_s: float) -> KeyRecord:
        """The record of a key that works.

        Raises:
            KeyRefused: with one message for keys that are unknown, revoked or expired, which never contains the key.
        """
        record = self._by_hash.get(hash_of(text))
        if record is None or not record.usable(now_s):
            raise KeyRefused("Incorrect API key provided: it is unknown, was revoked or has expired.")
        return record
