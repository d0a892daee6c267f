"""The AutoGPTQ format, against a packer that shares nothing with the reader: it sets one integer at a time."""

from typing import Any

import numpy as np
import pytest
from economizer_compression.errors import CompressionError
from economizer_compression.gptq_format import dequantize, format_settings, unpack_rows
from hypothesis import given
from hypothesis import strategies as st

FORMATS = {"gptq": 1, "gptq_v2": 0}


def words(values: list[int], bits: int) -> list[int]:
    """Integers in 32-bit words, the first in the lowest bits."""
    per_word = 32 // bits
    rows = [values[at : at + per_word] for at in range(0, len(values), per_word)]
    return [sum(value << bits * place for place, value in enumerate(row)) for row in rows]


def signed(unsigned: list[list[int]]) -> Any:
    return np.array(unsigned, dtype=np.uint32).view(np.int32)


def packed_inputs(integers: list[list[int]], bits: int) -> Any:
    """[inputs][outputs] -> qweight."""
    return np.ascontiguousarray(signed([words(list(column), bits) for column in zip(*integers, strict=True)]).T)


def packed_zeros(zeros: list[list[int]], bits: int, less: int) -> Any:
    """[groups][outputs] -> qzeros, with ``less`` subtracted from every integer by one subtraction a word."""
    ones = words([less] * (32 // bits), bits)[0]
    return signed([[(word - ones) % 2**32 for word in words(row, bits)] for row in zeros])


@pytest.mark.parametrize(
    ("bits", "word", "values"),
    [
        (2, 0x64000009, [1, 2, *[0] * 11, 1, 2, 1]),
        (4, 0x76543210, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, 0xF0000008 - 2**32, [8, 0, 0, 0, 0, 0, 0, 15]),
        (8, 0x7F028001, [1, 128, 2, 127]),
        (8, -1, [255, 255, 255, 255]),
    ],
)
def test_the_lowest_bits_of_a_word_are_the_first_input(bits: int, word: int, values: list[int]) -> None:
    assert unpack_rows(np.array([[word]], dtype=np.int32), bits)[:, 0].tolist() == values


@pytest.mark.parametrize(("zero_offset", "stored_zeros"), [(1, 0x77777777), (0, 0x88888888 - 2**32)])
def test_a_weight_is_its_integer_less_the_zero_point_times_the_scale(zero_offset: int, stored_zeros: int) -> None:
    # Eight inputs in two groups of four, eight outputs; the integers of output j are 0x76543210, so 0 to 7.
    found = dequantize(
        np.full((1, 8), 0x76543210, dtype=np.int32),
        np.full((2, 1), stored_zeros, dtype=np.int32),
        np.array([[0.5] * 8, [2.0] * 8], dtype=np.float32),
        np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=np.int32),
        bits=4,
        zero_offset=zero_offset,
    )
    assert found.dtype == np.float32
    assert found.tolist() == [[-4.0, -3.5, -3.0, -2.5, -8.0, -6.0, -4.0, -2.0]] * 8


@pytest.mark.parametrize(
    ("bits", "stored", "middle"),
    [(2, 0x55555555, 2), (4, 0x77777777, 8), (8, 0x7F7F7F7F, 128)],
)
def test_the_symmetric_zero_point_is_the_middle(bits: int, stored: int, middle: int) -> None:
    per_word = 32 // bits
    found = dequantize(
        np.zeros((1, per_word), dtype=np.int32),
        np.array([[stored]], dtype=np.int32),
        np.ones((1, per_word), dtype=np.float32),
        np.zeros(per_word, dtype=np.int32),
        bits=bits,
        zero_offset=1,
    )
    assert set(found.ravel().tolist()) == {-middle}


def test_with_desc_act_each_input_has_the_scale_of_the_group_that_it_names() -> None:
    found = dequantize(
        np.full((1, 8), 0x22222222, dtype=np.int32),
        packed_zeros([[1] * 8, [4] * 8], 4, 1),
        np.array([[10.0] * 8, [1.0] * 8], dtype=np.float32),
        np.array([1, 0, 0, 1, 0, 1, 1, 0], dtype=np.int32),
        bits=4,
        zero_offset=1,
    )
    assert found[3].tolist() == [-2.0, 10.0, 10.0, -2.0, 10.0, -2.0, -2.0, 10.0]


def test_a_zero_point_of_zero_borrows_from_the_next_and_is_read_back() -> None:
    found = dequantize(
        np.zeros((1, 8), dtype=np.int32),
        np.array([[0x381F0050 - 0x11111111]], dtype=np.int32),
        np.ones((1, 8), dtype=np.float32),
        np.zeros(8, dtype=np.int32),
        bits=4,
        zero_offset=1,
    )
    assert found[:, 0].tolist() == [0, -5, 0, 0, -15, -1, -8, -3]


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """A small layer of any form: its integers, zero points, scales and each input's group."""
    bits = draw(st.sampled_from([2, 4, 8]))
    per_word = 32 // bits
    inputs, outputs = per_word * draw(st.integers(1, 3)), per_word * draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    integers, random = st.integers(0, 2**bits - 1), draw(st.randoms(use_true_random=False))
    top = 2**bits - 1
    return {
        "bits": bits,
        "integers": [[random.randint(0, top) for _ in range(outputs)] for _ in range(inputs)],
        "zeros": [[draw(integers), *(random.randint(0, top) for _ in range(outputs - 1))] for _ in range(groups)],
        "scales": [[random.uniform(1e-3, 4) for _ in range(outputs)] for _ in range(groups)],
        "groups": [random.randrange(groups) for _ in range(inputs)],
    }


@given(layers(), st.sampled_from(sorted(FORMATS)))
def test_what_was_packed_is_read_back(layer: dict[str, Any], name: str) -> None:
    bits, zeros, groups = layer["bits"], layer["zeros"], layer["groups"]
    found_bits, zero_offset = format_settings({"bits": bits, "checkpoint_format": name}, "config.json")
    scales = np.array(layer["scales"], dtype=np.float32)
    found = dequantize(
        packed_inputs(layer["integers"], bits),
        packed_zeros(zeros, bits, FORMATS[name]),
        scales,
        np.array(groups, dtype=np.int32),
        bits=found_bits,
        zero_offset=zero_offset,
    )
    expected = [
        [scales[groups[i], j] * np.float32(row[j] - zeros[groups[i]][j]) for i, row in enumerate(layer["integers"])]
        for j in range(len(zeros[0]))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"bits": 4}, (4, 1)),
        ({"bits": 8, "checkpoint_format": "gptq", "sym": False}, (8, 1)),
        ({"bits": 2, "checkpoint_format": "gptq_v2", "pack_dtype": "int32"}, (2, 0)),
        ({"bits": 4, "dynamic": {"-:.*lm_head.*": {}, "+:.*down.*": {"bits": 4, "group_size": 32}}}, (4, 1)),
    ],
)
def test_bits_and_the_zero_points_offset_are_read_from_the_settings(
    settings: dict[str, Any], found: tuple[int, int]
) -> None:
    assert format_settings(settings, "config.json") == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "c.json: bits: 3: must be one of (2, 4, 8)"),
        ({}, "c.json: bits: None: must be one of (2, 4, 8)"),
        ({"bits": 4, "checkpoint_format": "marlin"}, "c.json: checkpoint_format: 'marlin': must be gptq or gptq_v2"),
        (
            {"bits": 4, "is_marlin_format": True},
            "c.json: is_marlin_format: True: must be false, the integers in AutoGPTQ's order",
        ),
        ({"bits": 4, "pack_dtype": "int16"}, "c.json: pack_dtype: 'int16': must be int32"),
        (
            {"bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}},
            "c.json: dynamic: +:.*down.*: bits: 8: must be 4 as elsewhere",
        ),
    ],
)
def test_what_is_not_read_is_refused_with_the_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressionError) as refused:
        format_settings(settings, "c.json")
    assert str(refused.value) == message
