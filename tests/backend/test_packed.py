"""The packed file: as many bytes as was said, the same weights back, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moopt.backend import packed, weights
from moopt.backend.packed import Layout
from moopt.errors import BackendError
from tests.backend.conftest import candidate_of, make_model


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("plain", [frozenset(), frozenset({"model.layers.0.mlp.down_proj", "model.embed_tokens"})])
def test_a_file_has_the_bytes_that_were_promised(tmp_path: Path, bits: int, plain: frozenset[str]) -> None:
    candidate = candidate_of(make_model("llama-tied"))
    layout = Layout(weights.inventory(candidate.model), 32, False, plain)
    widths = {w.name: bits for w in candidate.weights if w.name not in plain}
    path = tmp_path / "model.safetensors"
    packed.write(path, layout, candidate, widths)
    assert path.stat().st_size == layout.total_bytes(widths)
    quantized, rest = packed.read(path)
    assert set(quantized) == set(widths)
    for name, matrix in quantized.items():
        assert torch.equal(matrix.dequantize(), candidate.weight(name, bits))
    parameters = dict(candidate.model.named_parameters())
    assert all(torch.equal(tensor, parameters[name].bfloat16()) for name, tensor in rest.items())
    assert len(rest) == len(layout.inventory.rest) + len(plain)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = candidate_of(make_model("llama-tied"))
    layout = Layout(weights.inventory(candidate.model), 32, False)
    with pytest.raises(KeyError):
        packed.write(tmp_path / "model.safetensors", layout, candidate, {candidate.weights[0].name: 4})
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused(tmp_path: Path, save: Callable[[str], Path]) -> None:
    with pytest.raises(BackendError, match="is not a packed file"):
        packed.read(save("llama-tied") / "model.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(BackendError, match="Cannot read"):
        packed.read(tmp_path / "torn.safetensors")
