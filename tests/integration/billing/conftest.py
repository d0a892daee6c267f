"""The fleet that is billed."""

from collections.abc import Iterator

import pytest
from metered import Metered


@pytest.fixture(scope="package")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    """Tenants, two gateways and their books; afterwards nothing of it may be left."""
    made = Metered(tmp_path_factory.mktemp("metered"))
    try:
        made.fleet.wait_until_ready()
        yield made
        assert made.fleet.end() == (0, [])
    finally:
        made.fleet.kill()
        made.store.close()
