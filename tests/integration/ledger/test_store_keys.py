"""Keys are added, replaced and revoked, and every reader can see that they changed."""

from dataclasses import replace

import pytest
from economizer.admission.keys import KeyRecord, new_key, rotate
from economizer.ledger.store import LedgerRefused, Store


def key(number: int, **changes: object) -> KeyRecord:
    record = KeyRecord(
        id=f"{number:012}",
        tenant="acme",
        role="tenant",
        hash=f"{number:064x}",
        prefix=f"eco-{number:012}",
        created_s=100.125 + number,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def test_keys_are_read_as_they_were_added_the_oldest_first(store: Store) -> None:
    second = key(2, role="admin", expires_s=1e9 + 1 / 3, note="for the mill")
    store.add_key(second)
    store.add_key(key(1))
    assert store.keys() == [key(1), second]


def test_a_revoked_key_is_kept_for_those_who_ask_and_revoked_once(store: Store) -> None:
    store.add_key(key(1))
    assert store.revoke_key(key(1).id, 200.5)
    assert not store.revoke_key(key(1).id, 300.5)
    assert not store.revoke_key("nobody", 300.5)
    assert store.keys() == []
    assert store.keys(include_revoked=True) == [key(1, revoked_s=200.5)]


def test_the_version_grows_with_each_change_and_with_nothing_else(store: Store, url: str) -> None:
    reader = Store.open(url)
    versions = [reader.keys_version()]
    for change in (
        lambda: store.add_key(key(1)),
        lambda: store.revoke_key("nobody", 1.0),
        lambda: store.revoke_key(key(1).id, 1.0),
        lambda: store.prune(1e9),
    ):
        change()
        versions.append(reader.keys_version())
    reader.close()
    assert versions == [0, 1, 1, 2, 2]


def test_a_key_and_the_end_of_the_one_it_replaces_are_one_change(store: Store) -> None:
    _, first = new_key("acme", "tenant", now_s=100.0)
    store.add_key(first)
    _, second, ended = rotate(first, now_s=200.0, grace_s=50.0)
    store.add_key(second, replaced=ended)
    assert store.keys() == [replace(first, expires_s=250.0, replaced_by=second.id), second]
    assert store.keys_version() == 2


def test_a_key_is_not_replaced_twice_nor_after_it_was_revoked(store: Store) -> None:
    _, first = new_key("acme", "tenant", now_s=100.0)
    store.add_key(first)
    _, second, ended = rotate(first, now_s=200.0, grace_s=50.0)
    store.add_key(second, replaced=ended)
    store.revoke_key(second.id, 300.0)
    before = store.keys(include_revoked=True)
    for old in (first, second):
        _, third, ended = rotate(old, now_s=201.0, grace_s=50.0)
        with pytest.raises(LedgerRefused, match=f"{old.id} is not there, or was revoked or replaced"):
            store.add_key(third, replaced=ended)
    assert store.keys(include_revoked=True) == before
    assert store.keys_version() == 3


@pytest.mark.parametrize("other", [key(1, hash="f" * 64), key(2, hash=key(1).hash)])
def test_two_keys_never_share_an_id_or_a_hash(store: Store, other: KeyRecord) -> None:
    store.add_key(key(1))
    with pytest.raises(LedgerRefused):
        store.add_key(other)
    assert store.keys() == [key(1)]
    assert store.keys_version() == 1
