"""Which replica of the chosen variant: predicted wait, what its prefix cache holds, whose session it has. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from zlib import crc32

from economizer.router.types import LatencyPredictor, ReplicaState, RequestProfile

_BLOCK_CHARS = 256
_BLOCK_TOKENS = 64.0  # about, of a prompt that goes on behind its hashed blocks
_BLOCKS_MAX = 64
_PREFIXES_MAX = 16_384
_SESSIONS_MAX = 16_384
_SESSION_LOAD_MAX = 1.5  # a session leaves its replica when that is so much fuller than the emptiest one


def prefix_hashes(text: str) -> tuple[int, ...]:
    """Cumulative hashes of the text's leading whole blocks, the longest prefix last."""
    hashes: list[int] = []
    running = 0
    for start in range(0, min(len(text) - _BLOCK_CHARS + 1, _BLOCKS_MAX * _BLOCK_CHARS), _BLOCK_CHARS):
        running = crc32(text[start : start + _BLOCK_CHARS].encode("utf-8", "surrogatepass"), running)
        hashes.append(running)
    return tuple(hashes)


class AffinityIndex:
    """Which replica last saw a prefix, and which one a session is with. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[int, str] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def note(self, replica_id: str, hashes: Sequence[int], session: str | None) -> None:
        """A request with these prefixes went to that replica."""
        for key in hashes:
            self._prefixes[key] = replica_id
            self._prefixes.move_to_end(key)
        while len(self._prefixes) > _PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        if session is not None:
            self._sessions[session] = replica_id
            self._sessions.move_to_end(session)
            if len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)

    def forget(self, replica_id: str) -> None:
        """The replica is gone, and its cache with it."""
        for index in (self._prefixes, self._sessions):
            for key in [key for key, holder in index.items() if holder == replica_id]:
                del index[key]  # type: ignore[arg-type]

    def session(self, session: str | None) -> str | None:
        """The replica that a session is with."""
        return None if session is None else self._sessions.get(session)

    def cached_tokens(self, profile: RequestProfile) -> dict[str, float]:
        """By replica: the prompt tokens that it probably has in its prefix cache."""
        found: dict[str, float] = {}
        for blocks, key in enumerate(profile.prefix_hashes, start=1):
            holder = self._prefixes.get(key)
            if holder is None:
                break
            found[holder] = blocks
        hashed = len(profile.prefix_hashes)
        of_block = profile.prompt_tokens / hashed if 0 < hashed < _BLOCKS_MAX else _BLOCK_TOKENS
        return {replica: blocks * of_block for replica, blocks in found.items()}


def rank_replicas(
    states: Sequence[ReplicaState], affinity: AffinityIndex, profile: RequestProfile, latency: LatencyPredictor
) -> list[str]:
    """Ids of the ready replicas, best first: the session's own, then the shortest predicted wait for a first token.

    Ties go to the replica with less load, then by name.
    """
    ready = [state for state in states if state.ready]
    if len(ready) <= 1:
        return [state.id for state in ready]
    cached = affinity.cached_tokens(profile)
    home = affinity.session(profile.session)
    lightest = min([state.load for state in ready]) if home is not None else 0

    def key(state: ReplicaState) -> tuple[bool, float, int, str]:
        at_home = state.id == home and state.load <= _SESSION_LOAD_MAX * lightest + 1
        share = cached.get(state.id, 0.0) / profile.prompt_tokens if profile.prompt_tokens else 0.0
        wait_s = latency.expected_ttft_s(prompt_tokens=profile.prompt_tokens, cached_share=share, replica=state)
        return (not at_home, wait_s if wait_s is not None else state.load - share, state.load, state.id)

    return [state.id for state in sorted(ready, key=key)]
