"""A model that is streamed block by block: the same figures, with one block in memory."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import moopt
from moopt.backend.footprint import Footprint, chosen
from moopt.backend.metrics import CallableMetric
from moopt.backend.quantizers import RTN, EoRA
from moopt.cli_targets import parse, with_overrides
from moopt.errors import BackendError, ModelNotFound, ProblemError
from moopt.problem import Fidelity
from moopt_kernels import choose_layout
from moopt_problems import BitAllocation
from tests.backend import files
from tests.backend.conftest import make_model

SMALL: dict[str, Any] = {
    "bits": (2, 4), "group_size": 32, "text": textwrap.__file__, "tokens": 1280, "context": 64, "held_out": 0, 
    "validation": 0, "sensitivity_tokens": 256, "calibration_tokens": 512,
}  # fmt: skip
FIDELITY = Fidelity(1280, 0)
"""More than is run at once, so that the text goes through a block in parts."""


@pytest.fixture
def sharded(byte_tokenizer: Any, tmp_path: Path) -> Path:
    """A tiny model in several files of bfloat16."""
    model = make_model("llama-tied").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    byte_tokenizer.save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives what follows a cache of its own."""
    choose_layout("cpu")  # compiled kernels come from the usual cache
    return lambda name: monkeypatch.setenv("MOOPT_CACHE", str(tmp_path / name))


@pytest.mark.parametrize("quantizer", ["rtn", "gptq", "matgptq", EoRA(ranks=(0, 4, 8)), "bcq"], ids=str)
def test_a_streamed_candidate_measures_bit_for_bit_the_same(
    sharded: Path, cache: Callable[[str], None], quantizer: Any
) -> None:
    found = []
    for stream in (False, True):
        cache(f"cache-{stream}")
        problem = BitAllocation(str(sharded), quantizer=quantizer, stream=stream, **SMALL)
        config = problem.space.sample(np.random.default_rng(0))
        found.append([problem.evaluate(c, FIDELITY) for c in (config, *problem.baselines().values(), config)])
    whole, streamed = found
    assert [e.samples for e in streamed] == [e.samples for e in whole]
    assert [e.values for e in streamed] == [e.values for e in whole]


@pytest.mark.parametrize("family", ["qwen3", "gemma", "phi", "opt", "gpt-neox", "granite"])
def test_families_stream(save: Callable[[str], Path], family: str) -> None:
    whole, streamed = (_uniform(save(family), stream) for stream in (False, True))
    assert streamed == whole


def _uniform(folder: Path, stream: bool) -> Any:
    problem = BitAllocation(str(folder), stream=stream, **SMALL)
    return problem.evaluate(problem.baselines()["uniform-4"], FIDELITY).samples


@pytest.mark.parametrize("quantizer", ["gptq", EoRA(ranks=(0, 4))], ids=str)
def test_sensitivities_and_gradients_are_the_same(sharded: Path, cache: Callable[[str], None], quantizer: Any) -> None:
    tables, gradients = [], []
    for stream in (False, True):
        cache(f"cache-{stream}")
        problem = BitAllocation(str(sharded), quantizer=quantizer, stream=stream, **SMALL)
        tables.append([problem.sensitivities(name, 256) for name in ("fisher", "output-error", "shiftaddllm")])
        gradients.append(problem.gradient(problem.baselines()["uniform-4"], Fidelity(256, 0)))
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-5)
    assert gradients[1][0]["kl"] == pytest.approx(gradients[0][0]["kl"], rel=1e-5)
    np.testing.assert_allclose(gradients[1][1], gradients[0][1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradients[1][2], gradients[0][2], rtol=1e-3, atol=1e-6)


def test_blocks_have_no_weights_but_while_they_run(sharded: Path) -> None:
    problem = BitAllocation(str(sharded), stream=True, **SMALL)
    problem.setup(moopt.Resources())
    assert problem._bench is not None
    candidate = problem._bench.evaluator.candidate
    blocks = candidate.model.model.layers
    held: list[list[bool]] = []
    for block in blocks:
        block.register_forward_hook(lambda *_: held.append([any(p.numel() for p in b.parameters()) for b in blocks]))
    problem.evaluate(problem.baselines()["uniform-4"], FIDELITY)
    assert set(map(tuple, held)) == {(True, False), (False, True)}
    assert not any(p.numel() for p in blocks.parameters())


def test_variants_and_repairs_are_held_of_about_one_block(sharded: Path) -> None:
    problem = BitAllocation(str(sharded), quantizer=EoRA(RTN(), ranks=(0, 16)), stream=True, embedding=16, **SMALL)
    for name in ("uniform-2+r16", "uniform-4+r16"):
        problem.evaluate(problem.baselines()[name], FIDELITY)
    candidate = problem._ready.evaluator.candidate
    assert candidate._stream is not None
    assert 0 < candidate.variants.held_bytes <= candidate._stream.block_bytes
    assert len(candidate.variants._held) < 4 * len(problem.inventory.linears())


def test_a_streamed_candidate_is_saved_byte_for_byte_the_same(sharded: Path, tmp_path: Path) -> None:
    saved = []
    for stream in (False, True):
        problem = BitAllocation(str(sharded), quantizer=EoRA(RTN(), ranks=(0, 4)), stream=stream, **SMALL)
        saved.append(problem.save(problem.baselines()["uniform-4+r4"], tmp_path / str(stream) / "model.safetensors"))
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_whoever_fits_is_held_whole_and_who_fits_neither_way_is_told() -> None:
    gib = 2**30
    assert not chosen("m", Footprint(4 * gib, 2 * gib), 5 * gib)
    assert chosen("m", Footprint(4 * gib, 2 * gib), 3 * gib)
    with pytest.raises(BackendError, match=r"about 4\.0 GiB, streamed 2\.0 GiB, and 1\.0 GiB are free"):
        chosen("m", Footprint(4 * gib, 2 * gib), gib)
    with pytest.raises(BackendError, match=r"cannot be streamed \(it is timed\)"):
        chosen("m", Footprint(4 * gib, None), gib, "it is timed")


def test_what_cannot_be_streamed_is_refused(sharded: Path, tmp_path: Path) -> None:
    metric = CallableMetric("mine", lambda model: 0.0)
    for wrong, why in (
        ({"objectives": ("kl", "decode_ms")}, "decode_ms and prefill_ms are measured on a model that is held whole"),
        ({"metrics": (metric,)}, "metrics of your own take a model that is held whole"),
        ({"stream": "yes"}, "expected True, False or 'auto'"),
        ({"sensitivities": "higgs"}, "'higgs', which needs a model that is held whole.*would do: .*fisher"),
    ):
        with pytest.raises(ProblemError, match=why):
            BitAllocation(str(sharded), **{"stream": True, **SMALL, **wrong})
    with pytest.raises(ProblemError, match="only causal language models are streamed"):
        BitAllocation("minilm-l6", stream=True)
    problem = BitAllocation(str(sharded), stream=True, **SMALL)
    with pytest.raises(ProblemError, match=r"'hawq-v2', which needs a model that is held whole.*would do: .*fisher"):
        problem.sensitivities("hawq-v2", 256)
    other = shutil.copytree(sharded, tmp_path / "other")
    next(other.glob("*.safetensors")).unlink()
    with pytest.raises(ModelNotFound, match="safetensors in its folder"):
        BitAllocation(str(other), stream=True, **SMALL).setup(moopt.Resources())


@pytest.mark.parametrize("stream", [False, True])
def test_files_that_are_not_the_whole_model_are_refused(tiny: Path, tmp_path: Path, stream: bool) -> None:
    folder = shutil.copytree(tiny, tmp_path / "cut")
    file, name = folder / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    for rest, why in (
        ({key: tensor for key, tensor in tensors.items() if key != name}, rf"have no '{name}'"),
        (tensors | {name: torch.ones(64, 64)}, rf"'{name}' has the shape \(64, 64\) in .*expected \(64, 128\)"),
    ):
        save_file(rest, file, {"format": "pt"})
        with pytest.raises(BackendError, match=why):
            BitAllocation(str(folder), stream=stream, **SMALL).setup(moopt.Resources())
    for content in (b"\xff" * 100, file.read_bytes()[:-10]):
        file.write_bytes(content)
        with pytest.raises(ModelNotFound, match=r"cannot be loaded: .*header|is no safetensors file: |is damaged: "):
            BitAllocation(str(folder), stream=stream, **SMALL).setup(moopt.Resources())
    file.unlink()  # a model in one file comes before an index
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelNotFound, match=r"cannot be (read|loaded): "):
        BitAllocation(str(folder), stream=stream, **SMALL).setup(moopt.Resources())


def test_files_of_other_tools_stand_in_a_streamed_model(tiny: Path, tmp_path: Path) -> None:
    files.gptq(make_model("llama-tied"), tmp_path / "theirs")
    found = []
    for stream in (False, True):
        problem = BitAllocation(str(tiny), external={"theirs": str(tmp_path / "theirs")}, stream=stream, **SMALL)
        found.append(problem.evaluate(problem.baselines()["uniform-theirs"], FIDELITY))
    assert found[0].samples == found[1].samples
    assert found[1].attributes["simulated"] == ["theirs"]


@pytest.mark.parametrize("options", [{"bits": (2, "nf4")}, {"quantizer": "bcq"}, {"quantizer": EoRA(RTN(), (0, 4))}])
@pytest.mark.parametrize("stream", [False, True])
def test_weights_that_are_not_finite_are_named(
    tiny: Path, tmp_path: Path, stream: bool, options: dict[str, Any]
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "broken")
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    problem = BitAllocation(str(folder), stream=stream, **{**SMALL, **options})
    with pytest.raises(BackendError, match="finite"):
        problem.evaluate(list(problem.baselines().values())[-1], FIDELITY)


def test_the_command_line_decides_whether_to_stream(tiny: Path) -> None:
    study = moopt.Study("s", BitAllocation(str(tiny), **SMALL), storage=None)
    for said in (True, False):
        asked = with_overrides(study, dict([parse(f"stream={said}")])).problem
        assert isinstance(asked, BitAllocation)
        assert asked.stream is said


def test_a_plan_tells_both_modes(sharded: Path) -> None:
    plan = BitAllocation(str(sharded), **SMALL).plan(trials=20)
    assert plan.whole["memory_gib"] == plan.peak_memory_gib
    assert set(plan.whole) == set(plan.streamed) == {"memory_gib", "disk_gib", "minutes"}
    assert plan.streamed["disk_gib"] < plan.whole["disk_gib"]
