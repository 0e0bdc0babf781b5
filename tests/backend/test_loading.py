"""moopt.load: a packed file is a transformers model of its own family, runs on the kernels, and generates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import moopt
from moopt.backend import packed, weights
from moopt.backend.convert import convert, plain, quantize, switch
from moopt.backend.quantized_linear import QuantizedEmbedding, QuantizedLinear
from moopt.errors import BackendError, QuantizationError
from moopt_kernels import calls, dequantize, quantize_weight, reset_calls, slice_repack
from moopt_kernels.dispatch import Layout
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
    with pytest.raises(BackendError, match=r"has no slice map \['small'\]"):
        moopt.load(path, slices=["small"])  # type: ignore[arg-type]


def test_widths_are_switched_all_or_none(tmp_path: Path) -> None:
    source = Source("llama-tied")
    model = moopt.load(source.write(tmp_path / "model.safetensors", source.uniform(8)))
    first, last = source.names[1], source.names[-1]
    for wrong, error in (({last: 3.5}, QuantizationError), ({last: 9}, QuantizationError)):
        with pytest.raises(error, match="of 2 to 8 bits"):
            switch(model, {first: 4, **wrong})
    for unknown in ("nowhere", "model.norm"):
        with pytest.raises(BackendError, match=f"Got a slice of '{unknown}', which the model does not run from codes"):
            switch(model, {first: 4, unknown: 4})
    assert model.get_submodule(first).bits == 8


def test_a_tied_head_reads_the_codes_of_the_embedding(tmp_path: Path) -> None:
    source = Source("llama-tied")
    model = moopt.load(source.write(tmp_path / "model.safetensors", source.uniform(5)))
    assert model.get_output_embeddings().matrix is model.get_input_embeddings().matrix
    model.tie_weights()
    assert model.get_output_embeddings().matrix is model.get_input_embeddings().matrix


@pytest.mark.parametrize("family", ["llama-tied", "qwen2"])
def test_a_loaded_model_takes_its_own_state_back_and_says_what_it_weighs(tmp_path: Path, family: str) -> None:
    source = Source(family)
    path = source.write(tmp_path / "model.safetensors", source.uniform(4))
    model = moopt.load(path)
    assert 0.8 < model.get_memory_footprint() / path.stat().st_size < 1.1
    state = model.state_dict()
    model.load_state_dict(state)
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(RuntimeError, match=f"{name} has other values than the codes of this layer"):
        model.load_state_dict({**state, name: state[name] + 1})
    del state[name]
    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        model.load_state_dict(state)
    with pytest.raises(QuantizationError, match=r"Got torch\.float64; packed layers compute in"):
        model.double()


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


def test_a_loaded_model_generates_as_the_original_was_told_to(tmp_path: Path) -> None:
    source = Source("llama-tied")
    source.model.generation_config.eos_token_id = [0, 7]
    source.model.generation_config.update(do_sample=True, temperature=0.3)
    source.model.save_pretrained(tmp_path / "original")
    layout = replace(source.layout, generation=moopt.backend.models.generation(str(tmp_path / "original")))
    path = tmp_path / "model.safetensors"
    packed.write(path, layout, source.uniform(4), source.quantized, dict(source.model.named_parameters()))
    assert path.stat().st_size == layout.total_bytes(source.uniform(4))
    found = moopt.load(path).generation_config
    assert (found.eos_token_id, found.temperature, found.do_sample) == ([0, 7], 0.3, True)


def test_a_file_that_is_not_the_whole_of_its_model_is_refused(tmp_path: Path) -> None:
    source = Source("llama-tied")
    path = tmp_path / "model.safetensors"
    parameters = dict(source.model.named_parameters())
    rest = {name: shape for name, shape in source.layout.inventory.rest.items() if name != "model.norm.weight"}
    layout = replace(source.layout, inventory=replace(source.layout.inventory, rest=rest))
    packed.write(path, layout, source.uniform(4), source.quantized, parameters)
    with pytest.raises(BackendError, match=r"model\.norm\.weight is missing, 1 parameters in all"):
        moopt.load(path)
    longer = source.layout.config.replace('"num_hidden_layers":2', '"num_hidden_layers":4')
    packed.write(path, replace(source.layout, config=longer), source.uniform(4), source.quantized, parameters)
    with pytest.raises(BackendError, match=r"model\.layers\.2\.\S+ is missing, 18 parameters"):
        moopt.load(path)


@pytest.mark.parametrize(
    "config", ['{"model_type":"nothing"}', '{"a":1}', '{"model_type":"llama","hidden_size":"big"}', '{"model_type":[]}']
)
def test_a_configuration_that_makes_no_model_is_told(tmp_path: Path, config: str) -> None:
    source = Source("llama-tied")
    path = tmp_path / "model.safetensors"
    parameters = dict(source.model.named_parameters())
    packed.write(path, replace(source.layout, config=config), source.uniform(4), source.quantized, parameters)
    with pytest.raises(BackendError, match="has a configuration that makes no model"):
        moopt.load(path)


def test_a_model_does_not_change_when_its_file_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_KERNELS", "reference")
    source = Source("llama-tied")
    path = source.write(tmp_path / "model.safetensors", source.uniform(4))
    model = moopt.load(path)
    before = model(input_ids=IDS).logits
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_a_model_of_ones_own_is_converted_in_one_call() -> None:
    model = make_model("llama-tied")
    quantize(model, 6, group_size=48)  # 64 and 128 inputs: the last group of a row is shorter
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert sorted({m.bits for m in layers}) == [6, 8]  # the head reads the embedding's codes
    assert model.model.layers[0].self_attn.q_proj.fused is not None
    with torch.inference_mode():
        found = model(input_ids=IDS).logits
        assert distance(found, make_model("llama-tied")(input_ids=IDS).logits) < 0.3
    some = make_model("llama-tied")
    quantize(some, {"model.layers.0.mlp.up_proj": 3})
    assert [n for n, m in some.named_modules() if isinstance(m, QuantizedLinear)] == ["model.layers.0.mlp.up_proj"]
    with pytest.raises(BackendError, match="has no matrix 'nowhere' to quantize"):
        quantize(some, {"nowhere": 3})
    with pytest.raises(BackendError, match="runs from codes already"):
        quantize(model, 4)


@pytest.mark.parametrize("layout", ["plain", "cpu"])
def test_matrices_of_any_layout_are_converted(layout: Layout) -> None:
    model = make_model("llama")
    names = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qkv"]
    matrices = {n: quantize_weight(model.get_submodule(n).weight.data, 8, 32, layout=layout) for n in names}
    convert(model, matrices, torch.device("cpu"), dict.fromkeys(names, 4))
    for name, matrix in matrices.items():
        assert model.get_submodule(name).fused is not None
        assert torch.equal(model.get_submodule(name).weight, dequantize(slice_repack(matrix, 4)))


def test_a_model_that_cannot_be_converted_stays_as_it_is() -> None:
    model = make_model("llama")
    good = "model.layers.0.mlp.up_proj"
    matrix = quantize_weight(model.get_submodule(good).weight.data, 4, 32)
    for name in ("nowhere", "", "model.layers", "model.layers.0.mlp.down_proj"):
        with pytest.raises(BackendError, match=r"has no module|Got a matrix of shape"):
            convert(model, {good: matrix, name: matrix}, torch.device("cpu"))
    with pytest.raises(QuantizationError, match="only 8-bit parents have slices"):
        convert(model, {good: matrix}, torch.device("cpu"), {good: 3})
    with pytest.raises(BackendError, match="a slice of 'nowhere', of which there is no matrix"):
        convert(model, {good: matrix}, torch.device("cpu"), {"nowhere": 3})
    assert type(model.get_submodule(good)) is torch.nn.Linear


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    source = Source("llama-tied")
    layout = packed.Layout(source.layout.inventory, 32, False)
    path = tmp_path / "model.safetensors"
    packed.write(path, layout, source.uniform(4), source.quantized, dict(source.model.named_parameters()))
    with pytest.raises(BackendError, match="has no configuration of a model"):
        moopt.load(path)
    with pytest.raises(BackendError, match=r"Got dtype=torch\.float64"):
        moopt.load(path, dtype=torch.float64)
    with pytest.raises(BackendError, match="Got device='gpu'; expected 'auto', 'cpu'"):
        moopt.load(path, device="gpu")
    with pytest.raises(BackendError, match="Got device='meta', which holds no values"):
        moopt.load(path, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="Got device='cuda', but PyTorch finds no GPU"):
            moopt.load(path, device="cuda")
    with pytest.raises(BackendError, match="has no slice map ''"):
        moopt.load(source.write(path, source.uniform(8)), slices="")
    with pytest.raises(BackendError, match="has no module 'nowhere'"):
        convert(make_model("llama"), {"nowhere": plain(source.quantized(source.names[0], 4))}, torch.device("cpu"))


def test_a_model_in_float64_is_refused_and_stays_as_it_was() -> None:
    model = make_model("llama").double()
    with pytest.raises(QuantizationError, match=r"Got torch\.float64; packed layers compute in"):
        quantize(model, 4)
    assert model(input_ids=IDS).logits.dtype == torch.float64
