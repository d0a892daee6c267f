import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from economizer.cli import main
from economizer.config import IMPORT_PATH

ARGS: dict[str, Any] = {
    "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
    "families": {
        "m": {
            "full": "full",
            "variants": {
                "full": {
                    "engine": {"command": ["server"]},
                    "context_tokens_max": 4096,
                    "hardware": "cpu",
                    "quality": {"score": 1.0, "low": 0.98, "source": "made up"},
                    "speed": {
                        "prefill_tokens_per_s": 703.5,
                        "decode_tokens_per_s": {8: 200, 1: 31.4},
                        "source": "made up",
                    },
                    "power": {"active_w": 12, "idle_w": 2, "source": "made up"},
                },
                "int8": {"engine": {"command": ["server"]}, "context_tokens_max": 2048, "hardware": "cpu"},
                "tiny": {
                    "engine": {"command": ["server"]},
                    "context_tokens_max": 4096,
                    "hardware": "cpu",
                    "routed": False,
                    "energy": {
                        "prefill_j_per_token": 0.5,
                        "decode_j_per_token": {1: 4, 16: 0.25},
                        "source": "made up",
                    },
                    "size_bytes": 163_000_000,
                    "kl_mean": 0.018,
                    "top1_agreement": 0.925,
                },
            },
        }
    },
}


def write(folder: Path, args: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    content = {
        "http_options": {"host": "127.0.0.1"},
        "applications": [{"import_path": IMPORT_PATH, "args": args}],
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_a_good_configuration_is_well_formed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ARGS)
    assert main(["check-config", path]) == 0
    assert capsys.readouterr() == (f"{path}: well formed: 1 families, 3 variants\n", "")


def test_every_mistake_of_a_bad_one_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {"families": {}, "famillies": {}, "gateway": {"replicas": "two"}})
    assert main(["check-config", path]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"economizer: {path}: 2 mistakes\n"
        "  applications[0].args.gateway.replicas: 'two': Input should be a valid integer, unable to parse string as an"
        " integer\n"
        "  applications[0].args.famillies: {}: is not a known key here\n"
    )


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "none.yaml")
    assert main(["check-config", path]) == 1
    assert capsys.readouterr().err == f"economizer: {path}: 1 mistake\n  file: {path!r}: must exist\n"


def test_variants_are_shown_as_a_table_where_the_unknown_is_a_dash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["variants", write(tmp_path, ARGS)]) == 0
    assert capsys.readouterr().out == (
        "name    full  routed  quality  low   kl     top1   MB   prefill/s  decode/s  J/token  USD/h  context  replicas"
        "  hardware\n"
        "m@full  yes   yes     1        0.98  -      -      -    703.5      8:200     0.05     0.1    4096     1-1     "
        "  cpu\n"
        "m@int8        yes     -        -     -      -      -    -          -         -        0.1    2048     1-1     "
        "  cpu\n"
        "m@tiny                -        -     0.018  0.925  163  -          -         0.25     0.1    4096     1-1     "
        "  cpu\n"
    )


def test_variants_for_machines_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--json", write(tmp_path, ARGS)]) == 0
    full, int8, tiny = json.loads(capsys.readouterr().out)
    assert int8 == {
        "name": "m@int8",
        "full": False,
        "routed": True,
        "quality": None,
        "quality_low": None,
        "kl_mean": None,
        "top1_agreement": None,
        "size_bytes": None,
        "prefill_tokens_per_s": None,
        "decode_tokens_per_s": None,
        "energy_j_per_token": None,
        "prefill_j_per_token": None,
        "decode_j_per_token": None,
        "active_w": None,
        "usd_per_hour": 0.1,
        "carbon_g_per_kwh": None,
        "context_tokens_max": 2048,
        "replicas": "1-1",
        "hardware": "cpu",
    }
    # By what work adds to idle watts, over the rate of the largest batch, where no joules were measured.
    assert (full["energy_j_per_token"], full["decode_j_per_token"]) == ((12 - 2) / 200, None)
    measured = {
        "routed": False,
        "kl_mean": 0.018,
        "top1_agreement": 0.925,
        "size_bytes": 163_000_000,
        "energy_j_per_token": 0.25,
        "prefill_j_per_token": 0.5,
        "decode_j_per_token": {"1": 4.0, "16": 0.25},
    }
    assert {key: tiny[key] for key in measured} == measured


@contextmanager
def gateway(status: int, body: str) -> Iterator[str]:
    """A server that answers ``/readyz`` so, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the standard library's name
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # likewise
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ENGINE = {"variant": "m@full", "replica": "r1", "state": "ready", "running": 2, "waiting": 0, "kv_used": 0.25}
READY = {"ready": True, "families": ["m"], "not_ready": [], "engines": [ENGINE]}
NOT_READY = {"ready": False, "families": [], "not_ready": ["m", "n"], "engines": []}


def test_a_ready_gateway_shows_its_engines(capsys: pytest.CaptureFixture[str]) -> None:
    with gateway(200, json.dumps(READY)) as url:
        assert main(["status", "--url", f"{url}/"]) == 0
    assert capsys.readouterr().out == (
        "ready\n"
        "variant  replica  state  running  waiting  kv_used\n"
        "m@full   r1       ready  2        0        0.25\n"
    )  # fmt: skip


def test_a_gateway_that_is_not_ready_names_the_families_and_the_exit_code_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with gateway(503, json.dumps(NOT_READY)) as url:
        assert main(["status", "--url", url]) == 1
        assert capsys.readouterr().out == "not ready: m, n\n(none)\n"
        assert main(["status", "--json", "--url", url]) == 1
        assert json.loads(capsys.readouterr().out) == NOT_READY


@pytest.mark.parametrize(
    ("status", "body"), [(200, "<html>"), (404, "<html>"), (502, ""), (200, "[]"), (500, '{"detail": "no"}')]
)
def test_another_server_is_not_taken_for_a_gateway(status: int, body: str, capsys: pytest.CaptureFixture[str]) -> None:
    with gateway(status, body) as url:
        assert main(["status", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"economizer: No gateway answers at {url} (")
    assert err.endswith("): is `make run` running?\n")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_where_nothing_answers_the_next_step_is_named(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 1
    assert "is `make run` running?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["fly"], ["status", "--json", "extra"], ["check-config", "a", "b"]])
def test_a_command_line_that_is_wrong_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: economizer ")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert {"up", "check-config", "variants", "status", "bill", "savings", "keys"} <= set(
        capsys.readouterr().out.split()
    )
