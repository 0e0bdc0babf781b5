"""moopt.load: a packed file is a transformers model of its own family, runs on the kernels, and generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import moopt
from moopt.backend import packed, weights
from moopt.backend.convert import convert, plain, switch
from moopt.backend.quantized_linear import QuantizedEmbedding, QuantizedLinear
from moopt.errors import BackendError
from moopt_kernels import calls, reset_calls
from tests.backend.conftest import FAMILIES, make_model
from tests.backend.test_packed import Source

IDS = torch.tensor([[5, 80, 17, 200, 3, 9], [7, 7, 300, 12, 1, 44]])


def dense(source: Source, bits: int) -> torch.Tensor:
    """Logits of the model with dequantized weights, everything else rounded as in the file."""
    model = make_model("llama")
    model = type(source.model)(source.model.config).eval()
    model.load_state_dict(source.model.state_dict())
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for name in source.names:
        model.get_submodule(name).weight.data = source.quantized(name, bits).dequantize()
    model.tie_weights()
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_its_dequantized_weights_and_generates(tmp_path: Path, family: str) -> None:
    source = Source(family)
    path = source.write(tmp_path / "model.safetensors", source.uniform(4))
    model = moopt.load(path, dtype=torch.float32)
    assert type(model) is type(source.model)
    with torch.inference_mode():
        assert distance(model(input_ids=IDS).logits, dense(source, 4)) < 1e-5
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    reset_calls()
    text = model.generate(IDS[:1], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert text.shape == (1, 11)
    counted = {name: n for (name, _), n in calls().items()}
    assert counted["quantized_linear"] == 5 * (len(source.names) - saved_calls(source))
    assert counted["dequantize"] == 5  # the embedding's look-ups


def saved_calls(source: Source) -> int:
    """How many kernel calls fusing saves a forward pass; a tied head is one more call, the embedding none."""
    leaves = [name.rpartition(".")[2] for name in source.names]
    fused = min(leaves.count("q_proj"), leaves.count("v_proj")) * 2 + leaves.count("gate_proj")
    untied = any(w.kind == "head" for w in source.layout.inventory.weights)
    return fused + (1 if untied else 0)


def test_slice_maps_are_loaded_by_name_and_switched_in_place(tmp_path: Path) -> None:
    source = Source("llama-tied")
    slices = {"small": source.uniform(3), "mixed": {n: 4 if "mlp" in n else 8 for n in source.names}}
    path = source.write(tmp_path / "front.safetensors", source.uniform(8), slices)
    model = moopt.load(path, slices="small", dtype=torch.float32)
    with torch.inference_mode():
        small = model(input_ids=IDS).logits
        switch(model, slices["mixed"])
        mixed = model(input_ids=IDS).logits
        switch(model, source.uniform(8))
        assert distance(model(input_ids=IDS).logits, dense(source, 8)) < 1e-5
        assert torch.equal(moopt.load(path, slices="mixed", dtype=torch.float32)(input_ids=IDS).logits, mixed)
    assert distance(small, mixed) > 1e-2
    assert {m.bits for m in model.modules() if isinstance(m, (QuantizedLinear, QuantizedEmbedding))} == {8}
    with pytest.raises(BackendError, match="has no slice map 'big'; it has small, mixed"):
        moopt.load(path, slices="big")


def test_a_tied_head_reads_the_codes_of_the_embedding(tmp_path: Path) -> None:
    source = Source("llama-tied")
    model = moopt.load(source.write(tmp_path / "model.safetensors", source.uniform(5)))
    assert model.get_output_embeddings().matrix is model.get_input_embeddings().matrix


def test_a_loaded_model_is_saved_as_one_that_transformers_loads(tmp_path: Path) -> None:
    source = Source("llama-tied")
    model = moopt.load(source.write(tmp_path / "model.safetensors", source.uniform(4)), dtype=torch.float32)
    model.save_pretrained(tmp_path / "dense")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.inference_mode():
        assert distance(again(input_ids=IDS).logits, model(input_ids=IDS).logits) < 1e-5


def test_matrices_that_stay_at_16_bits_stay_dense(tmp_path: Path) -> None:
    source = Source("llama-tied", frozenset({"model.layers.0.mlp.up_proj", "model.embed_tokens"}))
    model = moopt.load(source.write(tmp_path / "model.safetensors", source.uniform(8)))
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert distance(model(input_ids=IDS).logits.float(), dense(source, 8)) < 0.05


def test_an_encoder_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=320
    )
    config.architectures = ["BertModel"]
    encoder = transformers.AutoModel.from_config(config).eval()
    inventory = weights.inventory(encoder)
    layout = packed.Layout(inventory, 32, False, frozenset(), moopt.backend.models.portable(config))
    names = [w.name for w in inventory.weights]
    matrices = {n: moopt.backend.quantizers.rtn(encoder.get_submodule(n).weight.data, 8, 32) for n in names}
    path = tmp_path / "encoder.safetensors"
    rest = dict(encoder.named_parameters())
    packed.write(path, layout, dict.fromkeys(names, 8), lambda name, bits: matrices[name], rest)
    loaded = moopt.load(path, dtype=torch.float32)
    assert type(loaded) is transformers.BertModel
    with torch.inference_mode():
        expected = encoder(input_ids=IDS).last_hidden_state
        assert distance(loaded(input_ids=IDS).last_hidden_state, expected) < 0.05


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    source = Source("llama-tied")
    layout = packed.Layout(source.layout.inventory, 32, False)
    path = tmp_path / "model.safetensors"
    packed.write(path, layout, source.uniform(4), source.quantized, dict(source.model.named_parameters()))
    with pytest.raises(BackendError, match="has no configuration of a model"):
        moopt.load(path)
    with pytest.raises(BackendError, match="has no module 'nowhere'"):
        convert(make_model("llama"), {"nowhere": plain(source.quantized(source.names[0], 4))}, torch.device("cpu"))
