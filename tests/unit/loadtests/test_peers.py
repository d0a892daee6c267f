from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from load import peers

ENGINES = (32001, 32002)


def test_nginx_takes_turns_on_the_engines_and_keeps_streams_unbuffered(tmp_path: Path) -> None:
    peer = peers.nginx("nginx", port=32000, engines=ENGINES, folder=tmp_path)
    ((path, text),) = peer.files.items()
    assert peer.command == ("nginx", "-c", str(path))
    assert "upstream engines { server 127.0.0.1:32001; server 127.0.0.1:32002; keepalive 64; }" in text
    assert "listen 127.0.0.1:32000;" in text
    assert "proxy_buffering off;" in text


def test_nginx_itself_finds_nothing_wrong_with_its_configuration(tmp_path: Path) -> None:
    programs, left_out = peers.found(tmp_path)
    if "nginx" not in programs:
        pytest.skip(left_out["nginx"])
    peer = peers.nginx(programs["nginx"], port=32000, engines=ENGINES, folder=tmp_path)
    for path, text in peer.files.items():
        path.write_text(text)
    done = subprocess.run([*peer.command, "-t"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_vllm_router_is_told_every_engine_and_listens_on_loopback() -> None:
    command = peers.vllm_router("vllm-router", port=32000, metrics_port=32010, engines=ENGINES).command
    place = command.index("--worker-urls")
    assert command[place + 1 : place + 3] == ("http://127.0.0.1:32001", "http://127.0.0.1:32002")
    assert command[command.index("--host") + 1] == command[command.index("--prometheus-host") + 1] == "127.0.0.1"


def test_litellm_has_a_deployment_of_the_same_model_on_each_engine(tmp_path: Path) -> None:
    peer = peers.litellm("litellm", port=32000, engines=ENGINES, model="boiler@bf16", key="sk-1", folder=tmp_path)
    ((path, text),) = peer.files.items()
    deployments = yaml.safe_load(text)["model_list"]
    assert str(path) in peer.command
    assert peer.env["LITELLM_MASTER_KEY"] == "sk-1"
    assert "sk-1" not in f"{text} {peer.command}"
    assert {one["model_name"] for one in deployments} == {"boiler@bf16"}
    assert [one["litellm_params"]["api_base"] for one in deployments] == [
        "http://127.0.0.1:32001/v1",
        "http://127.0.0.1:32002/v1",
    ]


def test_a_peer_that_is_not_installed_is_left_out_and_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    programs, left_out = peers.found(tmp_path)
    assert not programs.keys() & {"vllm-router", "litellm"}
    assert "make bench-peers" in left_out["vllm-router"]
    assert "make bench-peers" in left_out["litellm"]


def test_a_peer_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    command = ("sh", "-c", "echo no such engine; exit 3")
    peer = peers.Peer(name="broken", command=command, ready_path="/health")
    with (
        pytest.raises(peers.NotStarted, match="ended with code 3: no such engine"),
        peers.started(peer, port=1, folder=tmp_path),
    ):
        pass
