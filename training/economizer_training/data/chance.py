"""Chance that a seed decides: the same for an example whatever else is read, and wherever. Pure."""

import hashlib


def draw(seed: int, *what: object) -> float:
    """A number in [0, 1), the same for the same seed and things, and as good as independent otherwise."""
    told = "\0".join(map(str, (seed, *what))).encode()
    return (int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 11) / 2**53
