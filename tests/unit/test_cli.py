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
                    "power": {"active_w": 12, "source": "made up"},
                },
                "int8": {"engine": {"command": ["server"]}, "context_tokens_max": 2048, "hardware": "cpu"},
            },
        }
    },
}


def write(folder: Path, args: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"import_path": IMPORT_PATH, "args": args}]}), encoding="utf-8")
    return str(path)


def test_a_good_configuration_is_well_formed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ARGS)
    assert main(["check-config", path]) == 0
    assert capsys.readouterr() == (f"{path}: well formed: 1 families, 2 variants\n", "")


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
    titles, full, int8 = (line.split() for line in capsys.readouterr().out.splitlines())
    assert titles == [
        *("name", "full", "quality", "quality_low", "prefill_tokens_per_s", "decode_tokens_per_s", "active_w"),
        *("usd_per_hour", "carbon_g_per_kwh", "context_tokens_max", "replicas", "hardware"),
    ]
    assert full == ["m@full", "yes", "1", "0.98", "703.5", "1:31.4", "8:200", "12", "0.1", "-", "4096", "1-1", "cpu"]
    assert int8 == ["m@int8", "-", "-", "-", "-", "-", "0.1", "-", "2048", "1-1", "cpu"]


def test_variants_for_machines_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--json", write(tmp_path, ARGS)]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "m@int8",
        "full": False,
        "quality": None,
        "quality_low": None,
        "prefill_tokens_per_s": None,
        "decode_tokens_per_s": None,
        "active_w": None,
        "usd_per_hour": 0.1,
        "carbon_g_per_kwh": None,
        "context_tokens_max": 2048,
        "replicas": "1-1",
        "hardware": "cpu",
    }


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
    assert {"up", "check-config", "variants", "status"} <= set(capsys.readouterr().out.split())
