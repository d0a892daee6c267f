"""A carbon provider's client against a real HTTP server on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from economizer.energy.carbon import ProviderIntensity
from economizer.ledger.prices import PriceList, Rates
from economizer.variants.types import CarbonProviderSettings, Price, Variant

TOKEN = "sesame-4711"
GOOD = b'{"zone": "FR", "carbonIntensity": 52, "datetime": "2026-01-31T13:00:00.000Z", "isEstimated": false}'
NOW_S = 1_800_000_000.0


@dataclass
class Service:
    """What the server answers next, and what it was asked."""

    port: int = 0
    status: int = 200
    body: bytes = GOOD
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v3/carbon-intensity/latest?zone={{zone}}"


@contextmanager
def serving() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            time.sleep(service.delay_s)
            self.send_response(service.status)
            for name, value in service.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(service.body)))
            self.end_headers()
            with suppress(ConnectionError):  # the client may have gone
                self.wfile.write(service.body)

        def log_message(self, *args: Any) -> None:
            """Tests read what was asked instead."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def provider(service: Service, **given: Any) -> ProviderIntensity:
    settings: dict[str, Any] = {
        "url": service.url,
        "zone": "FR",
        "header": "auth-token",
        "token": TOKEN,
        "value_path": "carbonIntensity",
        "refresh_s": 900.0,
        "stale_s": 7200.0,
        "timeout_s": 5.0,
    }
    return ProviderIntensity(**{**settings, **given})


def test_before_it_was_asked_a_provider_knows_nothing(service: Service) -> None:
    assert provider(service).at(NOW_S) is None
    assert service.asked == []


def test_a_good_answer_holds_around_its_time(service: Service) -> None:
    one = provider(service)
    assert one.refresh(NOW_S) is None
    assert [one.at(NOW_S + s) for s in (-7201, -7200, 0, 7200, 7201)] == [None, 52.0, 52.0, 52.0, None]


def test_the_zone_and_the_token_are_sent(service: Service) -> None:
    provider(service, zone="US-CAL CISO/ä").refresh(NOW_S)
    [(path, headers)] = service.asked
    assert path == "/v3/carbon-intensity/latest?zone=US-CAL%20CISO%2F%C3%A4"
    assert headers["auth-token"] == TOKEN


def test_without_a_token_no_header_is_sent(service: Service) -> None:
    provider(service, token=None).refresh(NOW_S)
    [(_, headers)] = service.asked
    assert "auth-token" not in headers


def test_a_provider_is_asked_again_only_when_its_answer_is_due(service: Service) -> None:
    one = provider(service)
    for later_s in (0.0, 1.0, 899.0):
        one.refresh(NOW_S + later_s)
    assert len(service.asked) == 1
    service.body = b'{"carbonIntensity": 60.5}'
    one.refresh(NOW_S + 900)
    assert (len(service.asked), one.at(NOW_S + 900)) == (2, 60.5)


def test_a_clock_that_stepped_back_does_not_stop_the_asking(service: Service) -> None:
    one = provider(service)
    one.refresh(NOW_S)
    one.refresh(NOW_S - 86_400)
    assert (len(service.asked), one.at(NOW_S - 86_400)) == (2, 52.0)


TROUBLE = "the carbon intensity of FR cannot be read: "
NO_NUMBER = TROUBLE + "no number of 0 or more at 'carbonIntensity' in the answer"


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (500, GOOD, TROUBLE + "HTTP 500"),
        (429, b"", TROUBLE + "HTTP 429"),
        (401, TOKEN.encode(), TROUBLE + "HTTP 401: is the token right?"),
        (403, b"", TROUBLE + "HTTP 403: is the token right?"),
        (200, b"<html>" + TOKEN.encode(), TROUBLE + "no JSON answer (JSONDecodeError)"),
        (200, b"\xff\xfe\xff", TROUBLE + "no JSON answer (UnicodeDecodeError)"),
        (200, b"[" * 60_000, TROUBLE + "no JSON answer (RecursionError)"),
        (200, GOOD + b" " * 70_000, None),
        (200, b" " * 70_000 + GOOD, TROUBLE + "no JSON answer (JSONDecodeError)"),
        (200, b'{"zone": "FR"}', NO_NUMBER),
        (200, b'{"carbonIntensity": null}', NO_NUMBER),
        (200, b'{"carbonIntensity": "52"}', NO_NUMBER),
        (200, b'{"carbonIntensity": true}', NO_NUMBER),
        (200, b'{"carbonIntensity": -1}', NO_NUMBER),
        (200, b'{"carbonIntensity": NaN}', NO_NUMBER),
        (200, b'{"carbonIntensity": 1' + b"0" * 400 + b"}", NO_NUMBER),
        (200, b"[52]", NO_NUMBER),
        (200, b"52", NO_NUMBER),
    ],
)
def test_a_bad_answer_is_told_and_the_last_good_one_holds_until_it_is_stale(
    service: Service, status: int, body: bytes, trouble: str | None
) -> None:
    one = provider(service)
    assert one.refresh(NOW_S) is None
    service.status, service.body = status, body
    assert one.refresh(NOW_S + 900) == trouble
    assert one.at(NOW_S + 900) == 52.0
    if trouble is not None:
        assert one.at(NOW_S + 7201) is None


def test_after_a_failure_a_provider_is_asked_again_within_a_minute(service: Service) -> None:
    one = provider(service)
    service.status = 500
    one.refresh(NOW_S)
    service.status = 200
    assert one.refresh(NOW_S + 59) is None
    assert one.at(NOW_S + 59) is None
    assert one.refresh(NOW_S + 60) is None
    assert one.at(NOW_S + 60) == 52.0


def test_a_value_may_lie_deep_in_the_answer(service: Service) -> None:
    service.body = b'{"data": [{"intensity": {"actual": 263}}]}'
    one = provider(service, value_path="data.0.intensity.actual")
    assert (one.refresh(NOW_S), one.at(NOW_S)) == (None, 263.0)
    assert provider(service, value_path="data.1.intensity.actual").refresh(NOW_S) == (
        TROUBLE + "no number of 0 or more at 'data.1.intensity.actual' in the answer"
    )


def test_a_slow_provider_is_not_waited_for(service: Service) -> None:
    service.delay_s = 1.0
    began_s = time.monotonic()
    assert provider(service, timeout_s=0.2).refresh(NOW_S) == TROUBLE + "timed out"
    assert time.monotonic() - began_s < 0.9


def test_nobody_at_the_address_is_told_and_not_raised(service: Service) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening
        one = provider(service, url=f"http://127.0.0.1:{closed.getsockname()[1]}/latest", zone="")
        said = one.refresh(NOW_S)
    assert said is not None
    assert "Connection refused" in said


def test_something_else_than_http_is_told_and_not_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"SSH-2.0-nobody\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        said = provider(Service(port=listener.getsockname()[1])).refresh(NOW_S)
        thread.join()
    assert said == TROUBLE + "no JSON answer (BadStatusLine)"


@pytest.mark.parametrize("token", ["sesame\n4711", "sesame-\u20ac-4711"])
def test_a_token_that_cannot_be_sent_is_not_in_the_message(service: Service, token: str) -> None:
    said = provider(service, token=token).refresh(NOW_S)
    assert said is not None
    assert said.startswith(TROUBLE + "no JSON answer (")
    assert "sesame" not in said
    assert "4711" not in said


def test_the_token_is_not_sent_to_where_the_provider_redirects_to(service: Service) -> None:
    with serving() as elsewhere:
        service.status, service.headers = 302, {"Location": f"http://127.0.0.1:{elsewhere.port}/moved"}
        one = provider(service)
        assert (one.refresh(NOW_S), one.at(NOW_S)) == (None, 52.0)
    [(path, headers)] = elsewhere.asked
    assert path == "/moved"
    assert "auth-token" not in headers
    assert service.asked[0][1]["auth-token"] == TOKEN


def test_variants_on_one_grid_ask_its_provider_once_with_the_token_of_the_environment(service: Service) -> None:
    settings = CarbonProviderSettings(url=service.url, zone="FR", token_env="GRID_TOKEN")

    def variant(name: str, **carbon: Any) -> Variant:
        price = Price(usd_per_hour=3600.0, source="made up", **carbon)
        return Variant(family="m", name=name, context_tokens_max=1, concurrency_max=1, hardware="cpu", price=price)

    variants = [variant(name, carbon_provider=settings) for name in ("a", "b")]
    prices = PriceList.of([*variants, variant("c", carbon_g_per_kwh=3.6e6)], {"GRID_TOKEN": TOKEN})
    assert [prices.refresh(now_s) for now_s in (NOW_S, NOW_S + 1)] == [[], []]
    assert [headers["auth-token"] for _, headers in service.asked] == [TOKEN]
    known = Price(usd_per_hour=3600.0, carbon_g_per_kwh=52.0, source="made up")
    assert [prices.at(name, NOW_S) for name in ("m@a", "m@b")] == [known, known]
    assert prices.rates("m@c", NOW_S) == Rates(usd_per_s=1.0, carbon_g_per_j=1.0)
    service.status = 503
    assert prices.refresh(NOW_S + 900) == [TROUBLE + "HTTP 503"]
