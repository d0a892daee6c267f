"""``economizer keys``: API keys, made, listed, rotated and ended in the ledger's database.

A running gateway knows of it within a second or so. A key's text goes to stdout, alone, and everything else to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from economizer.admission.keys import KeyRecord, new_key, rotate
from economizer.cli.ledger import add_ledger_option, opened
from economizer.cli.tables import table
from economizer.config import home
from economizer.errors import EconomizerError
from economizer.ledger.openai_shapes import key_object
from economizer.ledger.when import length_s

if TYPE_CHECKING:
    from economizer.ledger.store import Store

_TEXT = "API keys: make, list, rotate and revoke them"


def add_keys(commands: Any) -> None:
    """``keys create``, ``keys list``, ``keys revoke`` and ``keys rotate``."""
    keys: argparse.ArgumentParser = commands.add_parser("keys", help=_TEXT, description=_TEXT)
    verbs = keys.add_subparsers(required=True, metavar="verb")
    default = home() / "deploy" / "config.yaml"

    def verb(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--config", type=Path, default=default, help="a Serve config (default %(default)s)")
        add_ledger_option(added)
        return added

    create = verb("create", _create, "make a key and show it, this once")
    create.add_argument("tenant", metavar="TENANT", help="whose requests it is for")
    create.add_argument("--admin", action="store_true", help="it may also read all bills and change keys")
    create.add_argument("--expires", metavar="TIME", help="when it ends, such as 90d (default never)")
    create.add_argument("--note", default="", help="what it is for")
    listed = verb("list", _list, "the keys that work, without their secrets")
    listed.add_argument("--all", action="store_true", help="also those that were revoked or have expired")
    listed.add_argument("--json", action="store_true", help="for machines")
    revoke = verb("revoke", _revoke, "end a key at once")
    revoke.add_argument("id", metavar="ID", help="as `keys list` shows it")
    rotated = verb("rotate", _rotate, "make a key in the place of another, which ends a little later")
    rotated.add_argument("id", metavar="ID", help="as `keys list` shows it")
    rotated.add_argument(
        "--grace", metavar="TIME", default="1h", help="how long the old one works (default %(default)s)"
    )


def _create(options: argparse.Namespace) -> int:
    now_s = time()
    expires_s = None if options.expires is None else now_s + length_s("expires", options.expires)
    try:
        text, key = new_key(
            options.tenant,
            "admin" if options.admin else "tenant",
            now_s=now_s,
            expires_s=expires_s,
            note=options.note,
        )
    except ValueError as error:
        raise EconomizerError(str(error)) from None
    with opened(options.ledger, options.config, make=True) as store:
        store.add_key(key)
    _show(text, key)
    return 0


def _list(options: argparse.Namespace) -> int:
    now_s = time()
    with opened(options.ledger, options.config) as store:
        found = [key for key in store.keys(options.all) if options.all or key.usable(now_s)]
    if options.json:
        print(json.dumps([key_object(key) for key in found], indent=2))
    else:
        print(table([_for_people(key, now_s) for key in found]))
    return 0


def _revoke(options: argparse.Namespace) -> int:
    with opened(options.ledger, options.config) as store:
        if not store.revoke_key(options.id, time()):
            raise EconomizerError(f"There is no key {options.id!r} that works.")
    print(f"Key {options.id} is revoked.", file=sys.stderr)
    return 0


def _rotate(options: argparse.Namespace) -> int:
    now_s, grace_s = time(), length_s("grace", options.grace)
    with opened(options.ledger, options.config) as store:
        old = _key(store, options.id)
        text, new, ending = rotate(old, now_s=now_s, grace_s=grace_s)
        store.add_key(new, replaced=ending)
    print(f"Key {old.id} ends {_time(ending.expires_s)}.", file=sys.stderr)
    _show(text, new)
    return 0


def _key(store: Store, key_id: str) -> KeyRecord:
    for key in store.keys(True):
        if key.id == key_id:
            return key
    raise EconomizerError(f"There is no key {key_id!r}.")


def _show(text: str, key: KeyRecord) -> None:
    ends = "never ends" if key.expires_s is None else f"ends {_time(key.expires_s)}"
    print(
        f"Key {key.id} of {key.tenant} ({key.role}) {ends}. It is shown this once, and kept nowhere:", file=sys.stderr
    )
    print(text)


def _for_people(key: KeyRecord, now_s: float) -> dict[str, Any]:
    state = "works" if key.usable(now_s) else "expired" if key.revoked_s is None else "revoked"
    return {
        "id": key.id,
        "tenant": key.tenant,
        "role": key.role,
        "key": f"{key.prefix}-...",
        "state": state,
        "created": _time(key.created_s),
        "expires": _time(key.expires_s),
        "replaced by": key.replaced_by,
        "note": key.note,
    }


def _time(moment_s: float | None) -> str | None:
    return None if moment_s is None else datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%d %H:%MZ")
