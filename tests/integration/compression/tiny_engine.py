"""Runs in the compression environment, for test_speed.py: tiny models on a real engine. Says what it found in JSON.

::

    python tiny_engine.py FOLDER TOKENIZER ENGINE_PYTHON
"""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from economizer.energy.choose import MeterSettings
from economizer_compression.errors import CompressionError
from economizer_compression.serving import Engine, EngineSettings
from economizer_compression.speed import LogprobReference, MeasurePlan, measure, measure_folder
from economizer_compression.tether import descendants
from transformers import AutoModelForCausalLM, LlamaConfig

PLAN = MeasurePlan(
    rounds=2, batches=(1, 4), ttft_prompts=2, prompt_short=64, prompt_long=200, prefill_s=0.5, decode_s=0.3
)
TEXTS = [[1, *range(100, 160)], list(range(7, 4000, 90))]


def make_tiny(folder: Path, tokenizer: Path) -> None:
    """A random Llama with SmolLM2's tokenizer."""
    config = LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024},
        **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.06, "tie_word_embeddings": True},
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)


def expected_logprobs(folder: Path) -> list[list[float]]:
    """What transformers says of TEXTS."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    expected = []
    for ids in TEXTS:
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected.append([float(logprobs[at, id_]) for at, id_ in enumerate(ids[1:])])
    return expected


def say(**found: object) -> None:
    """One line for the test."""
    print(json.dumps(found), flush=True)


def main(folder: Path, tokenizer: Path, python: Path) -> None:
    """The broken checkpoint first, then the tiny one, whose engine then runs until this process is killed."""
    settings = EngineSettings(
        python=python,
        args=("--max-model-len=1024", "--max-num-seqs=4", "--enforce-eager"),
        env={
            **{"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        meter=MeterSettings(kind="cpu", watts_per_core=4.0, watts_per_core_idle=1.0),
    )
    tiny, broken = folder / "tiny", folder / "broken"
    make_tiny(tiny, tokenizer)
    shutil.copytree(tiny, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "runes"}}))
    try:
        measure_folder(broken, None, settings, PLAN)
    except CompressionError as error:
        say(refused=str(error), left=descendants(os.getpid()))
    reference = LogprobReference(token_ids=TEXTS, logprobs=expected_logprobs(tiny))
    told: list[str] = []
    with Engine(tiny, settings, progress=told.append) as engine:
        # The engine against itself: what is timed is real, and no second start is waited for.
        measured = measure(engine, engine, PLAN, reference=reference, progress=told.append)
        say(measured=asdict(measured), told=told, engine_pid=engine.pid, tree=descendants(os.getpid()))
        sys.stdin.read()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
