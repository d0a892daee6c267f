"""What a user of the README gets: both real variants behind one endpoint, called with OpenAI's own client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from fleet import Fleet, until
from openai import OpenAI
from real_engines import EnginePage, engine_process

MODEL = "smollm2-135m"
QUESTION: Any = [{"role": "user", "content": "What is an economizer? Answer in one sentence."}]
STORY: Any = [{"role": "user", "content": "Write a very long story about a boiler."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chosen(client: OpenAI, headers: Mapping[str, str], model: str = MODEL, **body: Any) -> str:
    """The variant that answers a request with these headers."""
    answer = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, max_tokens=2, extra_headers=dict(headers), **body
    )
    return str(answer.headers["x-economizer-variant"])


def kept_receipt(client: OpenAI, request_id: str) -> Any:
    """A receipt, which is kept once the gateway is done with a request: a moment after its last byte."""
    for _ in range(20):
        try:
            return client.get(f"/receipts/{request_id}", cast_to=object)
        except openai.NotFoundError:
            time.sleep(0.1)
    return client.get(f"/receipts/{request_id}", cast_to=object)


def test_a_chat_answer_carries_its_receipt_in_usage_and_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=16)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    receipt = answer.usage.model_extra["economizer"]  # type: ignore[index]
    assert receipt["method"] == "estimate"
    assert receipt["variant"] == raw.headers["x-economizer-variant"]
    assert receipt["energy_j"] > 0
    assert float(raw.headers["x-cost-usd"]) == pytest.approx(receipt["cost_usd"], rel=1e-4)
    assert receipt["full"]["variant"] == "bf16"


def test_a_stream_ends_with_usage_and_its_receipt_can_be_read_later(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert text
    assert usage is not None
    short = usage.model_extra["economizer"]  # type: ignore[index]
    long = kept_receipt(client, short["request_id"])
    assert long["outcome"] == "ok"
    assert long["actual"]["usage"]["output_tokens"] == usage.completion_tokens
    assert {candidate["variant"] for candidate in long["decision"]["candidates"]} == {"bf16", "int8"}


def test_completions_and_responses_are_answered_streamed_and_not(client: OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="The sky is", max_tokens=4).choices[0].text
    assert client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8).output_text
    events = list(client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, stream=True))
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.model_extra["economizer"]["energy_j"] > 0  # type: ignore[index,union-attr]


def test_json_mode_keeps_to_the_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"boiler": {"enum": ["hot", "cold"]}},
        "required": ["boiler"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "boiler", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "")["boiler"] in ("hot", "cold")


def test_a_required_tool_is_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=200,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"][:1] == ["get_weather"]


def test_log_probabilities_come_through(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2, 2]


def test_models_lists_the_family_and_the_names_that_pin_its_variants(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, f"{MODEL}@bf16", f"{MODEL}@int8"]
    assert client.models.retrieve(f"{MODEL}@int8").id == f"{MODEL}@int8"


def test_what_a_model_lacks_is_refused_in_words(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="boiler")
    assert refused.value.code == "feature_unsupported"
    assert "embeddings" in refused.value.message


def test_errors_are_the_classes_that_openai_clients_know(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-99", messages=QUESTION)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"temperature": "hot"})
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=100_000)
    assert long.value.code == "context_length_exceeded"


def test_terms_move_traffic_between_the_variants(client: OpenAI, fleet: Fleet) -> None:
    variants = fleet.families[MODEL]["variants"]
    between = (variants["int8"]["quality"]["score"] + 1) / 2
    assert chosen(client, {"x-quality-min": str(between)}) == "bf16"
    assert chosen(client, {}, extra_body={"economizer": {"quality_min": between, "policy": "green"}}) == "bf16"
    costs = {}
    for name in ("bf16", "int8"):
        assert chosen(client, {}, f"{MODEL}@{name}") == name
        receipt_id = client.chat.completions.with_raw_response.create(
            model=f"{MODEL}@{name}", messages=QUESTION, max_tokens=2
        ).headers["x-economizer-request-id"]
        receipt: Any = client.get(f"/receipts/{receipt_id}", cast_to=object)
        (candidate,) = [c for c in receipt["decision"]["candidates"] if c["variant"] == name]
        costs[name] = candidate["prediction"]["costs"]["energy_j"]
    frugal = min(costs, key=lambda name: costs[name])
    assert chosen(client, {"x-max-energy-j": str(sum(costs.values()) / 2)}) == frugal
    assert chosen(client, {"x-economizer-policy": "green"}) == frugal


def test_an_impossible_term_is_refused_naming_each_variant_and_the_nearest_is_had_on_request(client: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        chosen(client, {"x-max-energy-j": "0.000001"})
    assert refused.value.code == "terms_unmet"
    assert "bf16: its energy" in refused.value.message
    assert "int8: its energy" in refused.value.message
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=2,
        extra_body={"economizer": {"energy_j_max": 0.000001, "on_unmet": "degrade"}},
    )
    assert answer.usage is not None
    assert "its energy" in answer.usage.model_extra["economizer"]["missed"][0]  # type: ignore[index]


def test_a_caller_that_leaves_stops_the_engine_within_a_second(client: OpenAI, fleet: Fleet) -> None:
    variant = f"{MODEL}@bf16"
    stream = client.chat.completions.create(model=variant, messages=STORY, max_tokens=1900, stream=True)
    for count, _ in enumerate(stream):
        if count == 5:
            break
    page = EnginePage(fleet, variant)
    assert page.running() == 1
    stream.close()
    left_s = time.monotonic()
    until(lambda: page.running() == 0, 10)
    assert time.monotonic() - left_s < 1.0
    produced = page.generated()
    time.sleep(1)
    assert page.generated() == produced


def test_a_rolling_redeploy_loses_no_request(client: OpenAI, fleet: Fleet) -> None:
    """The engine of int8 and the gateway are replaced while both variants are under load, streamed and not."""
    before = engine_process(fleet, f"{MODEL}@int8")
    load = Load(client)
    with load:
        content = yaml.safe_load(fleet.file.read_text())
        int8 = content["applications"][0]["args"]["families"][MODEL]["variants"]["int8"]
        int8["engine"]["args"] = [*int8["engine"]["args"], "--seed=1"]
        int8["scaling"] = {"down_s": 30}
        fleet.file.write_text(yaml.safe_dump(content))
        done = fleet.serve("deploy", str(fleet.file))
        assert done.returncode == 0, done.stderr
        until(lambda: not Path(f"/proc/{before}").exists(), 300)
        until(lambda: "status: RUNNING" in fleet.serve("status").stdout, 120)
        load.answered = 0
        until(lambda: load.answered >= 8, 60)
    assert load.failures == []
    assert chosen(client, {}, f"{MODEL}@int8") == "int8"
    status = fleet.serve("status").stdout
    assert "HEALTHY" in status
    assert "UNHEALTHY" not in status


class Load:
    """Requests to both variants for as long as it is entered, and what became of them."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(model, stream))
            for model in (f"{MODEL}@int8", MODEL)
            for stream in (True, False)
        ]
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, model: str, stream: bool) -> None:
        while not self._over.is_set():
            try:
                if stream:
                    chunks = list(
                        self._client.chat.completions.create(model=model, messages=STORY, max_tokens=12, stream=True)
                    )
                    if chunks[-1].choices[0].finish_reason is None:
                        self.failures.append(f"{model}: a stream ended early")
                else:
                    self._client.chat.completions.create(model=model, messages=STORY, max_tokens=12)
            except openai.OpenAIError as error:
                self.failures.append(f"{model}: {type(error).__name__}: {error}")
            self.answered += 1
