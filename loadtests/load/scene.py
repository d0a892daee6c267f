"""What every Locust user of a run shares: where it asks, as whom, with which terms and which words."""

from __future__ import annotations

import json
import os
import random
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec

from load.locust_options import NO_TERMS
from load.mixes import Mix, Sort, read_mix
from load.prompts import TEMPLATE_TOKENS, Prompts, read_texts
from load.sending import Target
from load.tokens import counter
from load.types import Message

_ANY_KEY = "any"
_MODELS_S = 10.0
_INSTRUCTIONS_TOKENS = 200


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Whom requests are sent as, and the mix that their terms are drawn from."""

    name: str
    key: str
    mix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A server and a model there, who asks, and the words. ``context``: tokens of a prompt and its answer together."""

    target: Target
    model: str
    tenants: tuple[Tenant, ...]
    context: int
    prompts: Prompts

    @classmethod
    def of(cls, options: Namespace, host: str) -> Scene:
        """By a run's options; raises ValueError for those that cannot work and OSError where no server answers."""
        if not host:
            raise ValueError("--host is missing: must be a server's address, such as http://127.0.0.1:8000")
        asking = tenants(options.tenants, options.mix, os.environ)
        for tenant in asking:
            _mix(tenant.mix)
        url = f"{host.rstrip('/').removesuffix('/v1')}/v1"
        target = Target(
            urls=(url,),
            keys={tenant.name: tenant.key for tenant in asking},
            terms=not options.plain,
            timeout_s=options.answer_timeout,
        )
        return cls(
            target=target,
            model=options.model or _first_model(url, asking[0].key),
            tenants=asking,
            context=options.context,
            prompts=_prompts(options.data),
        )

    def instructions(self) -> Message:
        """What every conversation begins with: always the same words."""
        return Message(role="system", content=self.prompts.chat(_INSTRUCTIONS_TOKENS, "instructions")[0].content)

    def question(self, tokens: int) -> Message:
        """A question, behind a text where it is long, of so many tokens; never the same twice."""
        return self.prompts.chat(tokens + TEMPLATE_TOKENS, random.random())[0]

    def tokens_max(self, *messages: Message) -> int:
        """The most tokens that a chat of these may have for the engine."""
        return TEMPLATE_TOKENS + round(self.prompts.tokens(messages) * (1 + self.prompts.counter.margin))

    def sort(self, tenant: Tenant) -> Sort:
        """Terms and tier of a request, drawn from a tenant's mix."""
        return _mix(tenant.mix).draw(random.Random())


def tenants(spec: str, mix: str, environment: Mapping[str, str]) -> tuple[Tenant, ...]:
    """``acme:strict,bolt`` as tenants, each with its key from ECONOMIZER_KEY_<NAME>; a name alone has ``mix``.

    Without any there is one, ``default``, with OPENAI_API_KEY or no key of its own. Raises ValueError.
    """
    if not spec:
        return (Tenant(name="default", key=environment.get("OPENAI_API_KEY") or _ANY_KEY, mix=mix),)
    found = []
    for part in spec.split(","):
        name, _, own = (word.strip() for word in part.partition(":"))
        variable = "ECONOMIZER_KEY_" + "".join(c if c.isalnum() else "_" for c in name.upper())
        if not name:
            raise ValueError(f"--tenants is {spec!r}: must be names, each with :MIX or without, with commas between")
        if not environment.get(variable):
            raise ValueError(
                f"--tenants names {name}: {variable} must hold its key, as `economizer keys create` prints"
            )
        found.append(Tenant(name=name, key=environment[variable], mix=own or mix))
    return tuple(found)


@lru_cache(maxsize=8)
def _first_model(url: str, key: str) -> str:
    """The first model that the server lists. Raises OSError where nothing answers, ValueError where it lists none."""
    address = f"{url}/models"
    try:
        with urlopen(Request(address, headers={"authorization": f"Bearer {key}"}), timeout=_MODELS_S) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except HTTPError as error:
        raise ValueError(f"{address} answers {error.code} {error.reason}: --model must name a model there") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"nothing answers at {address} ({reason}). Start the fleet with `make run`, and wait until it says that it "
            "is ready; or name another OpenAI-compatible server with --host (make: URL=)"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{address} lists no model: --model must name one") from None


@lru_cache(maxsize=8)
def _prompts(data: str) -> Prompts:
    folder = Path(data) if data and Path(data).is_dir() else None  # --data may also be a file of rates
    return Prompts(read_texts(folder), counter(None))


@lru_cache(maxsize=8)
def _mix(name: str) -> Mix:
    return Mix(name=NO_TERMS, sorts={NO_TERMS: Sort(share=1.0)}) if name == NO_TERMS else read_mix(name)
