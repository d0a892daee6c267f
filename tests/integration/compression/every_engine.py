"""Runs in the engine environment, for test_recipes_served.py: vLLM on each of the folders that every_recipe.py made.

::

    python every_engine.py FOLDER

Writes ``served.json``: for each variant vLLM's log probability of every token of the texts but the first, or its error.
"""

import gc
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def served(folder: Path, texts: list[list[int]]) -> list[list[float]]:
    """What the engine says of the texts."""
    engine = LLM(str(folder), max_model_len=256, max_num_seqs=4, enforce_eager=True, disable_log_stats=True)
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    found = []
    for text, output in zip(
        texts, engine.generate([{"prompt_token_ids": ids} for ids in texts], asked, use_tqdm=False), strict=True
    ):
        every = output.prompt_logprobs or []
        found.append([each[token].logprob for each, token in zip(every[1:], text[1:], strict=True) if each])
    return found


def main(folder: Path) -> None:
    """All variants in one process: starting vLLM is most of the time."""
    texts = json.loads((folder / "texts.json").read_text())
    found: dict[str, object] = {}
    for name in json.loads((folder / "expected.json").read_text()):
        try:
            found[name] = served(folder / name, texts)
        except Exception as error:  # noqa: BLE001  # told to the test
            found[name] = f"{type(error).__name__}: {error}"
        gc.collect()
    (folder / "served.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
