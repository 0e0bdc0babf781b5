"""Finding and loading models, and the clear words when there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from moopt.backend import models, weights
from moopt.errors import ModelNotFound, QuantizationError
from moopt.whole import whole_folder
from tests.backend.conftest import FAMILIES


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_outline_lists_what_the_loaded_model_has(family: str, save: Callable[[str], Path]) -> None:
    folder = str(save(family))
    outline = weights.inventory(models.outline(models.load_config(folder)))
    loaded = weights.inventory(models.load_model(folder))
    assert outline == loaded
    assert models.generates(models.load_config(folder))
    assert len(outline.linears()) >= 8


def test_fused_groups_follow_the_servers(save: Callable[[str], Path]) -> None:
    found = weights.inventory(models.outline(models.load_config(str(save("llama")))))
    assert list(weights.groups(found.linears(), "fused")) == [
        f"{block}.{part}" for block in (0, 1) for part in ("q_k_v", "o", "gate_up", "down")
    ]
    assert list(weights.groups(found.linears(), "block")) == ["0", "1"]
    assert list(weights.groups(found.linears(), "linear"))[:3] == ["0.q", "0.k", "0.v"]
    assert found.table("head") is not None
    with pytest.raises(QuantizationError, match=r"pattern 'none\.\*' matches no layer"):
        weights.skipped(found.weights, ("none.*",))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="There is no model 'smollm'; expected a local folder"):
        models.location("smollm")
    with pytest.raises(ModelNotFound, match=r"There is no model '\./nowhere'"):
        models.location("./nowhere")
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        models.location(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        models.load_config(str(tmp_path))


def test_an_encoder_may_lack_its_pooler_and_nothing_else(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"

    def lose(part: str) -> None:
        save_file({k: v.clone() for k, v in load_file(file).items() if part not in k}, file, {"format": "pt"})

    lose("pooler")
    models.load_model(str(tmp_path))
    lose("layer.1.output.dense.weight")
    with pytest.raises(ModelNotFound, match=r"files have no 'encoder\.layer\.1\.output\.dense\.weight'"):
        models.load_model(str(tmp_path))


def test_an_index_that_is_none_is_named(save: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(save("llama"), tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelNotFound, match="cannot be loaded: its files lack 'metadata'"):
        models.load_model(str(folder))


def test_the_identity_follows_the_weights(save: Callable[[str], Path]) -> None:
    assert models.identity(str(save("llama"))) == models.identity(str(save("llama")))
    assert models.identity(str(save("llama"))) != models.identity(str(save("llama-tied")))


def test_a_folder_that_fails_half_way_is_not_kept(tmp_path: Path) -> None:
    def fill() -> None:
        with whole_folder(tmp_path / "model") as folder:
            (folder / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert list(tmp_path.iterdir()) == []
