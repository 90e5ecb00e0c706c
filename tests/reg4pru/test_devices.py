"""Devices: which number format is fast there, and what is said where it is not."""

import pytest
import torch

from reg4pru.common import devices


@pytest.mark.parametrize(
    ("abilities", "dtype"),
    [({"avx512_bf16": True}, "bfloat16"), ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
     ({"avx512_bf16": False, "avx512_f": True}, "float32"), ({}, "float32")],
)  # fmt: skip
def test_the_fast_type_is_what_the_cpu_computes_in(monkeypatch, abilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert devices.fast_dtype("cpu") == dtype
    assert devices.fast_dtype("meta") == "float32"
    with pytest.raises(ValueError, match="nowhere"):
        devices.fast_dtype("nowhere")


@pytest.mark.parametrize(
    ("mixed_precision", "abilities", "says"),
    [("bf16", {}, True), ("bf16", {"amx_bf16": True}, False), ("no", {}, False)],
)
def test_a_training_in_emulated_bfloat16_is_announced(monkeypatch, caplog, mixed_precision, abilities, says):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    devices.warn_of_emulation(mixed_precision, "cpu")
    assert ("is emulated: a step can take more than ten times as long" in caplog.text) == says


def test_this_cpu_is_known():
    assert torch.cpu.get_capabilities()["architecture"]
