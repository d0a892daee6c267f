"""Eight-bit weights and activations (W8A8) by rounding to nearest: the variant that takes seconds to make.

python -m economizer_compression.int8 --model DIR --out DIR
"""

import argparse
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

from economizer_compression.folders import whole_folder


def quantize_int8_rtn(model: Path, out: Path) -> None:
    """Writes `model` to `out` with INT8 weights (one scale per output channel) and INT8 activations.

    Activation scales are computed per token while serving, so no calibration data is needed. The output head
    stays as it is: it is a small part of the work and the layer where rounding costs most quality.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    oneshot(model=weights, recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]))
    with whole_folder(out) as partial:
        weights.save_pretrained(partial, save_compressed=True)
        tokenizer.save_pretrained(partial)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantise a model folder to INT8 weights and activations.")
    parser.add_argument("--model", type=Path, required=True, help="the model folder to read")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    arguments = parser.parse_args()
    quantize_int8_rtn(arguments.model, arguments.out)


if __name__ == "__main__":
    main()
