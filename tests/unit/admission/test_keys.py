"""API keys: made, found, refused and rotated."""

import re
from dataclasses import replace
from hashlib import sha256

import pytest
from economizer.admission.keys import KeyRecord, KeyRing, hash_of, looks_like_ours, new_key, presented, rotate
from economizer.errors import InvalidRequest, KeyRefused
from hypothesis import given
from hypothesis import strategies as st

NOW_S = 1_772_000_000.0


def refusal(ring: KeyRing, text: str, now_s: float = NOW_S) -> str:
    with pytest.raises(KeyRefused) as caught:
        ring.find(text, now_s)
    return caught.value.message


def test_a_new_key_names_its_id_and_ends_with_256_random_bits() -> None:
    text, record = new_key("acme", "tenant", now_s=NOW_S, expires_s=NOW_S + 60, note="for the batch jobs")
    assert re.fullmatch(rf"eco-{record.id}-[A-Za-z0-9_-]{{43}}", text)
    assert record == KeyRecord(
        id=record.id,
        tenant="acme",
        role="tenant",
        hash=sha256(text.encode()).hexdigest(),
        prefix=f"eco-{record.id}",
        created_s=NOW_S,
        expires_s=NOW_S + 60,
        note="for the batch jobs",
    )
    assert looks_like_ours(text)
    assert not looks_like_ours("sk-proj-eco-1")


def test_no_two_keys_are_alike() -> None:
    made = [new_key("acme", "tenant", now_s=NOW_S) for _ in range(200)]
    assert len({text[-43:] for text, _ in made}) == len({record.id for _, record in made}) == 200


def test_neither_a_record_nor_a_refusal_shows_a_key_or_its_secret() -> None:
    text, record = new_key("acme", "admin", now_s=NOW_S)
    message = refusal(KeyRing([]), text)
    assert text[-43:] not in repr(record) + message
    assert "Incorrect API key" in message


def test_a_ring_finds_each_of_its_keys_and_nothing_else() -> None:
    made = [new_key(tenant, "tenant", now_s=NOW_S) for tenant in ("acme", "acme", "beta")]
    ring = KeyRing([record for _, record in made])
    assert [ring.find(text, NOW_S) for text, _ in made] == [record for _, record in made]
    text, record = made[0]
    for wrong in ("", "eco-", text[:-1], text + "A", text.upper(), record.hash, record.prefix, "schlüssel"):
        refusal(ring, wrong)


@given(expires_s=st.none() | st.floats(0, 100), revoked_s=st.none() | st.floats(0, 100), now_s=st.floats(0, 100))
def test_a_key_works_until_its_end_and_never_once_revoked(
    expires_s: float | None, revoked_s: float | None, now_s: float
) -> None:
    text, record = new_key("acme", "tenant", now_s=0.0)
    ring = KeyRing([replace(record, expires_s=expires_s, revoked_s=revoked_s)])
    if revoked_s is None and (expires_s is None or now_s < expires_s):
        assert ring.find(text, now_s).id == record.id
    else:
        assert refusal(ring, text, now_s) == refusal(KeyRing([]), text, now_s)


def test_an_expired_key_is_refused_from_the_moment_of_its_end() -> None:
    text, record = new_key("acme", "tenant", now_s=NOW_S, expires_s=NOW_S + 10)
    ring = KeyRing([record])
    assert ring.find(text, NOW_S + 9.999) == record
    refusal(ring, text, NOW_S + 10)


def test_a_key_is_not_made_for_the_past() -> None:
    with pytest.raises(ValueError, match=r"expires_s is 1772000000\.0: must be after now"):
        new_key("acme", "tenant", now_s=NOW_S, expires_s=NOW_S)


def test_rotation_makes_a_key_of_the_same_kind_and_ends_the_old_one_after_its_grace() -> None:
    old_text, old = new_key("acme", "admin", now_s=NOW_S, note="ci")
    new_text, new, ending = rotate(old, now_s=NOW_S + 100, grace_s=3600)
    assert (new.tenant, new.role, new.note, new.created_s, new.expires_s) == ("acme", "admin", "ci", NOW_S + 100, None)
    assert ending == replace(old, expires_s=NOW_S + 3700, replaced_by=new.id)
    ring = KeyRing([ending, new])
    assert ring.find(old_text, NOW_S + 3699) == ending
    refusal(ring, old_text, NOW_S + 3700)
    assert ring.find(new_text, NOW_S + 3700) == new


def test_rotation_never_lengthens_a_key_s_life() -> None:
    _, old = new_key("acme", "tenant", now_s=NOW_S, expires_s=NOW_S + 50)
    for grace_s, ends_s in ((3600, NOW_S + 50), (0, NOW_S + 10)):
        _, new, ending = rotate(old, now_s=NOW_S + 10, grace_s=grace_s)
        assert (new.expires_s, ending.expires_s) == (NOW_S + 50, ends_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revoked_s": NOW_S}, "the key k1 was revoked or has expired: make a new one"),
        ({"expires_s": NOW_S}, "the key k1 was revoked or has expired: make a new one"),
        ({"replaced_by": "k2"}, "the key k1 was rotated already, to k2: rotate that one"),
    ],
)
def test_a_key_that_has_ended_or_was_rotated_is_not_rotated(change: dict[str, float], message: str) -> None:
    _, old = new_key("acme", "tenant", now_s=NOW_S - 1)
    with pytest.raises(InvalidRequest) as caught:
        rotate(replace(old, id="k1", **change), now_s=NOW_S, grace_s=60)  # type: ignore[arg-type]
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a-b"),
        ("tenant", "anonymous"),
        ("tenant", ""),
        ("role", "root"),
        ("hash", "eco-1-secret"),
        ("created_s", float("nan")),
        ("expires_s", float("inf")),
    ],
)
def test_a_record_that_cannot_be_is_not_built(field: str, value: object) -> None:
    _, record = new_key("acme", "tenant", now_s=NOW_S)
    with pytest.raises(ValueError, match=f"^{field} is "):
        replace(record, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"authorization": "Bearer eco-1-x"}, "eco-1-x"),
        ({"authorization": "bearer  eco-1-x "}, "eco-1-x"),
        ({"x-api-key": "eco-1-x"}, "eco-1-x"),
        ({"api-key": " eco-1-x"}, "eco-1-x"),
        ({"authorization": "Bearer a", "x-api-key": "b", "api-key": "c"}, "a"),
        ({"authorization": "Basic dTpw", "x-api-key": "b"}, "b"),
        ({"authorization": "Bearer ", "x-api-key": ""}, None),
        ({"authorization": "eco-1-x"}, None),
        ({}, None),
    ],
)
def test_a_key_is_presented_as_openais_or_azures_clients_do(headers: dict[str, str], found: str | None) -> None:
    assert presented(headers) == found


def test_a_hash_is_sha_256_of_the_whole_text() -> None:
    assert hash_of("eco-1-x") == "3c94a9e71ebef9edaf5004c934e7a58fc7478c4649235b02858fba55fd592941"
