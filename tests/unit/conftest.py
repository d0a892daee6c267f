"""Unit tests draw the same examples on every run; `--hypothesis-profile=search` looks for new ones."""

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow]  # other work on the machine is no fault of a test
settings.register_profile("unit", derandomize=True, max_examples=40, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("search", max_examples=2000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile("unit")
