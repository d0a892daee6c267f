"""The AutoGPTQ checkpoint format (``quant_method: gptq``): what its integers mean. Pure, numpy alone.

A linear layer of ``inputs x outputs`` is stored as ``qweight`` int32 [inputs * bits / 32, outputs], packed along the
inputs with the first in the lowest bits; ``qzeros`` int32 [groups, outputs * bits / 32], packed along the outputs;
``scales`` [groups, outputs]; ``g_idx`` int32 [inputs], each input's group. The format called ``gptq`` stores each zero
point less one, ``gptq_v2`` as it is. GPTQModel subtracts the ones from whole words, so that a zero point of 0 borrows
from the next one in its word; they are added to whole words here, too. Bits 2, 4 and 8 divide 32; three-bit checkpoints
straddle words and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from economizer_compression.errors import CompressionError

BITS = (2, 4, 8)


def unpack_rows(packed: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """[rows, columns] of packed words -> [rows * 32 / bits, columns] of integers in [0, 2**bits)."""
    per_word = 32 // bits
    words = packed.view(np.uint32)[:, None, :] >> np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
    values = words & np.uint32(2**bits - 1)
    return values.reshape(packed.shape[0] * per_word, packed.shape[1]).astype(np.int32)


def dequantize(
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[np.float32],
    g_idx: NDArray[np.int32],
    *,
    bits: int,
    zero_offset: int,
) -> NDArray[np.float32]:
    """The layer's weights as [outputs, inputs]: scale * (integer - zero), with each input's group's scale and zero.

    ``zero_offset`` is 1 for the format ``gptq`` and 0 for ``gptq_v2``.
    """
    integers = unpack_rows(qweight, bits)
    offsets = np.uint32(sum(zero_offset << shift for shift in range(0, 32, bits)))
    zeros = unpack_rows((np.ascontiguousarray(qzeros.T).view(np.uint32) + offsets).view(np.int32), bits).T
    return np.ascontiguousarray((scales[g_idx] * (integers - zeros[g_idx])).T, dtype=np.float32)


def format_settings(quantization_config: Mapping[str, Any], source: str) -> tuple[int, int]:
    """(bits, zero offset) of a checkpoint; raises CompressionError for what is not read."""
    bits = quantization_config.get("bits")
    if bits not in BITS:
        raise CompressionError(f"{source}: bits: {bits!r}: must be one of {BITS}")
    if quantization_config.get("is_marlin_format"):
        raise CompressionError(f"{source}: is_marlin_format: True: must be false, the integers in AutoGPTQ's order")
    name = quantization_config.get("checkpoint_format") or "gptq"
    if name not in ("gptq", "gptq_v2"):
        raise CompressionError(f"{source}: checkpoint_format: {name!r}: must be gptq or gptq_v2")
    if (word := quantization_config.get("pack_dtype") or "int32") != "int32":
        raise CompressionError(f"{source}: pack_dtype: {word!r}: must be int32")
    for modules, own in (quantization_config.get("dynamic") or {}).items():
        if own.get("bits", bits) != bits:
            raise CompressionError(f"{source}: dynamic: {modules}: bits: {own['bits']}: must be {bits} as elsewhere")
    return int(bits), 1 if name == "gptq" else 0
