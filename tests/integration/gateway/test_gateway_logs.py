"""What the logs must not hold."""

import asyncio
from pathlib import Path

from fleet import Fleet
from replies import CANARY_PROMPT, CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Caller

KEY = b"sk-canary-key"


async def test_no_log_holds_a_prompt_an_answer_or_a_key(caller: Caller, fleet: Fleet, tmp_path: Path) -> None:
    await caller.until_served("twins")
    for path, field in ((COMPLETIONS, "prompt"), (RESPONSES, "input"), (EMBEDDINGS, "input")):
        await caller.post(path, {"model": "pair", field: CANARY_PROMPT})
    for headers in ({"x-quality-min": "1"}, {"x-quality-min": CANARY_PROMPT}, {"x-session-id": CANARY_PROMPT}):
        await caller.chat("terms@fast", headers=headers)
    for raw in (
        b'{"model": "plain", "messages": [{"role": "user", "content": "%s"' % CANARY_PROMPT.encode(),
        b'{"model": "plain", "messages": "%s"}' % CANARY_PROMPT.encode(),
        b'{"model": "%s", "messages": []}' % CANARY_PROMPT.encode(),
    ):
        await caller.post(CHAT, raw)
    for fake in ({"status": 500}, {"garbage": True}, {"die": "before"}, {"cut": 2}):
        await caller.chat("twins", fake={**fake, "once": str(tmp_path / str(fake))})
        async with caller.streamed("twins", fake={**fake, "once": str(tmp_path / f"{fake} streamed")}) as stream:
            await stream.response.read()
    await caller.get(f"/v1/receipts/{CANARY_PROMPT}")
    await asyncio.sleep(2)  # Serve writes its logs in blocks
    secrets = [engine.secret.encode() for engine in fleet.engines()]
    kept_out = [CANARY_PROMPT.encode(), b"word0 word1", KEY, *secrets]
    logs = dict(fleet.logs())
    assert any(b'"event":"request"' in text for text in logs.values()), "the requests themselves are logged"
    assert [(path.name, needle) for path, text in logs.items() for needle in kept_out if needle in text] == []
