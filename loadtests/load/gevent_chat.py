"""One Locust user's connection: sends a planned chat and reads its answer as it comes, under gevent.

geventhttpclient is what Locust's FastHttpUser is made of, and is used here without it: FastHttpUser reads a stream in
blocks of 1,024 bytes, and takes one that broke off for one that ended. On 20 streams of a token every 20 ms it saw the
first token after 106 ms, ``readline`` here after 3 ms. Locust's HttpUser (requests) can read as promptly (8 ms, and the
same 30 us of CPU time a token); its OpenAI user (locust.contrib.oai) waits for the whole answer before it measures.
"""

from __future__ import annotations

from time import perf_counter

import msgspec
from geventhttpclient.client import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPSocketPoolResponse

from load.answers import Answer, read_head, take
from load.sending import Target, request_body, request_head
from load.types import Outcome, Planned

_CONNECT_S = 10.0
_DATA, _DONE = b"data:", b"[DONE]"


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text | None = None
    delta: _Text | None = None


class _Said(msgspec.Struct):
    choices: list[_Choice] | None = None


_SAID = msgspec.json.Decoder(_Said)


class Chat:
    """A keep-alive connection of one user, who asks one thing at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._url = target.url(0)
        self._client = HTTPClient.from_url(
            self._url, concurrency=1, connection_timeout=_CONNECT_S, network_timeout=target.timeout_s
        )

    def close(self) -> None:
        """Give the connection up."""
        self._client.close()

    def send(self, planned: Planned) -> tuple[Outcome, str]:
        """Ask now, whenever it was due, and read to the end: what came of it, and the answer's text.

        What a server does wrong is the outcome's ``error``, never an exception.
        """
        began_s = perf_counter()
        answer, said = Answer(clock=lambda: perf_counter() - began_s, quality=self._target.quality), list[str]()
        try:
            response = self._client.request(
                "POST",
                f"{self._url}/chat/completions",
                body=request_body(planned, self._target),
                headers=request_head(planned, self._target),
            )
            answer.status = response.status_code
            read_head({name.lower(): value for name, value in response.items()}, answer)
            streamed = str(response.get("content-type", "")).startswith("text/event-stream")
            (_read_stream if streamed else _read_whole)(response, answer, said)
        except TimeoutError:
            answer.end("timeout")
        except ConnectionRefusedError:
            answer.end("not_connected")
        except msgspec.DecodeError:
            answer.end("not_understood")
        except (HTTPParseError, OSError):
            answer.end("broken_off")
        return answer.outcome(planned, planned.due_s), "".join(said)


def _read_stream(response: HTTPSocketPoolResponse, answer: Answer, said: list[str]) -> None:
    """Read events to [DONE] and the rest to the end, after which the connection can be used again."""
    done = False
    while line := response.readline(b"\n"):
        if line.startswith(_DATA) and not done:
            data = line[len(_DATA) :].strip()
            if data == _DONE:
                done = True
                answer.end()
            else:
                take(data, answer)
                said += _words(data)
    if not done:
        answer.end("stream_cut")


def _read_whole(response: HTTPSocketPoolResponse, answer: Answer, said: list[str]) -> None:
    """Read an answer or an error; where something else than an engine or a gateway failed, it need not be JSON."""
    body = response.read()
    try:
        take(body, answer)
        said += _words(body)
    except msgspec.DecodeError:
        if response.status_code == 200:
            raise
    answer.end(None if response.status_code == 200 else f"http_{response.status_code}")


def _words(data: bytes) -> list[str]:
    texts = (text for choice in _SAID.decode(data).choices or () for text in (choice.message, choice.delta))
    return [text.content for text in texts if text is not None and text.content]
