"""An audit of the attribution by Shapley values: what each request adds to an engine's energy, averaged over the orders
in which requests might have been let in (Shapley, 1953), drawn at random (truncated Monte Carlo: Ghorbani and Zou,
2019).

The cost of a coalition is what the made-up engine uses when it serves that coalition alone: steps are shared again, and
batches are other batches.
"""

from collections import defaultdict
from random import Random

import pytest
from economizer.energy.attribution import per_token_shares
from economizer.energy.step_model import StepModel
from economizer.energy.types import NO_WORK
from synthetic_engine import TRUE, Request, attributed, engine, taught, traffic, windows

PERMUTATIONS = 200
TRUNCATED = 0.01  # of the whole cost: what is less to come is not computed


def cost_uj(requests: list[Request]) -> float:
    """What the engine uses for these alone, beyond its background."""
    steps = list(engine(requests))
    return sum(TRUE.work_uj(sum(works.values(), NO_WORK), 1) for _, works in steps)


def shapley_uj(requests: list[Request], seed: int) -> dict[str, float]:
    random, whole_uj = Random(seed), cost_uj(requests)
    values: defaultdict[str, float] = defaultdict(float)
    known: dict[frozenset[Request], float] = {frozenset(): 0.0}
    for _ in range(PERMUTATIONS):
        coalition: frozenset[Request] = frozenset()
        for one in random.sample(requests, len(requests)):
            before_uj = known[coalition]
            if whole_uj - before_uj < TRUNCATED * whole_uj:
                break
            coalition |= {one}
            if coalition not in known:
                known[coalition] = cost_uj(sorted(coalition, key=lambda request: request.name))
            values[one.name] += (known[coalition] - before_uj) / PERMUTATIONS
    return values


def distance(found: dict[str, float], wanted: dict[str, float]) -> float:
    """The share of the energy that would have to move from one request to another."""
    scale = sum(wanted.values()) / sum(found.values())
    return sum(abs(found[name] * scale - wanted[name]) for name in wanted) / 2 / sum(wanted.values())


@pytest.fixture(scope="module")
def model() -> StepModel:
    seconds = windows(traffic(1, 300))
    return taught(StepModel(), seconds, [int(window.active_uj) for window in seconds])


BURSTS = {
    "one long prompt among chats": [Request("long", 0.8, 6_000, 20)]
    + [Request(f"chat{i}", 0.1 * i, 100 + 20 * i, 150) for i in range(7)],
    "answers of different lengths": [Request(f"r{i}", 0.0, 200, 10 + 15 * i) for i in range(8)],
    "one after the other": [Request(f"r{i}", 0.7 * i, 300, 40) for i in range(6)],
    "four long prompts at once": [Request(f"r{i}", 0.0, 2_000 * (i + 1), 25) for i in range(4)],
}


@pytest.mark.parametrize("burst", BURSTS)
def test_shares_are_within_five_percent_of_the_shapley_values_and_per_token_shares_are_not(
    model: StepModel, burst: str
) -> None:
    requests = BURSTS[burst]
    wanted = shapley_uj(requests, seed=1)
    shares: defaultdict[str, float] = defaultdict(float)
    by_token: defaultdict[str, float] = defaultdict(float)
    for window in windows(requests):
        for name, share in attributed(model, window, int(window.active_uj)).shares.items():
            shares[name] += share
        if window.works:
            for name, share in per_token_shares(int(window.active_uj), window.works).items():
                by_token[name] += share
    assert sum(wanted.values()) == pytest.approx(cost_uj(requests), rel=TRUNCATED)
    assert distance(shares, wanted) < 0.05
    assert distance(by_token, wanted) > 0.05
