"""Which arithmetic is chosen, and that the fast one computes the same thing."""

from __future__ import annotations

import copy

import pytest
import torch

from backdoorkit import _precision
from backdoorkit.training import resolve_precision, supports_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew():
    _precision._cpu_multiplies_bfloat16.cache_clear()
    yield
    _precision._cpu_multiplies_bfloat16.cache_clear()


def probes(monkeypatch, *, amx, avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)


@pytest.mark.parametrize(("amx", "avx512"), [(True, False), (False, True), (False, False)])
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(amx, avx512, monkeypatch):
    probes(monkeypatch, amx=amx, avx512=avx512)
    assert supports_bfloat16(CPU) == (amx or avx512)
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if amx or avx512 else None)


def test_explicit_choices_are_followed_anywhere(monkeypatch):
    probes(monkeypatch, amx=False, avx512=False)
    assert resolve_precision("bfloat16", CPU) is torch.bfloat16
    assert resolve_precision("float32", CPU) is None


def test_without_onednn_bfloat16_is_not_fast(monkeypatch):
    probes(monkeypatch, amx=True, avx512=True)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert not supports_bfloat16(CPU)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_on_cuda_the_capability_decides(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert supports_bfloat16(torch.device("cuda")) is expected


def test_other_devices_train_in_float32():
    assert resolve_precision("auto", torch.device("mps")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 sse\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse\n", False),
        ("Features\t: fp asimd\n", False),
    ],
)
def test_the_kernels_flags_answer_where_torch_does_not(text, expected, monkeypatch, tmp_path):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    monkeypatch.setattr(_precision, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)
    assert supports_bfloat16(CPU) is expected


def test_no_cpuinfo_means_no_flags(tmp_path):
    assert _precision._cpu_flags(tmp_path / "absent") == frozenset()


def test_bfloat16_training_stays_close_and_keeps_float32_weights(model, train):
    other = copy.deepcopy(model)
    exact = train(model, epochs=8, precision="float32")
    fast = train(other, epochs=8, precision="bfloat16")
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
    assert fast != exact
    for one, two in zip(exact.history, fast.history, strict=True):
        assert one.loss == pytest.approx(two.loss, rel=0.1)
