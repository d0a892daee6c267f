"""A tiny model behind OpenAI's completions API in vLLM's form, over real sockets, that can go away and come back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Reply = tuple[int, Mapping[str, str], bytes]  # status, headers, body


class Served:
    """Listens on loopback from `start` to `stop`, always on the same port; ``seen`` has what was asked: headers, body.

    ``instead`` is asked before the model: what it returns is the reply, None lets the model answer.
    """

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.headers: dict[str, str] = {}
        self.instead: Callable[[int], Reply | None] = lambda _: None
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on; what it was answering is still answered."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that http.server calls
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with served._lock:  # also: a model and one thread of torch
                    served.seen.append((dict(self.headers.items()), body))
                    status, headers, content = served.instead(len(served.seen)) or served._answer(self.path, body)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        return Handler

    def _answer(self, path: str, body: Mapping[str, Any]) -> Reply:
        assert path == "/v1/completions", path
        choices = [
            {
                "index": index,
                "text": "",
                "logprobs": None,
                "finish_reason": "length",
                "prompt_logprobs": self._prompt_logprobs(prompt, body["prompt_logprobs"]),
            }
            for index, prompt in enumerate(body["prompt"])
        ]
        answer = {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices[::-1]}
        return 200, {"content-type": "application/json", **self.headers}, json.dumps(answer).encode()

    @torch.no_grad()
    def _prompt_logprobs(self, prompt: list[int], top: int) -> list[dict[str, Any] | None]:
        """As vLLM: nothing for the first token; for each other one its own and the most probable ones, by their ids."""
        log_p = self._model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        found: list[dict[str, Any] | None] = [None]
        for each, token in zip(log_p[:-1], prompt[1:], strict=True):
            listed = {token: int((each >= each[token]).sum())}
            listed |= {int(id_): rank for rank, id_ in enumerate(each.topk(top).indices, start=1)}
            found.append({str(id_): {"logprob": float(each[id_]), "rank": rank} for id_, rank in listed.items()})
        return found


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """OpenAI's error object."""
    told = {"error": {"message": message, "type": "x", "param": None, "code": code}}
    return status, headers, json.dumps(told).encode()
