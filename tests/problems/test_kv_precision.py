"""Precision of keys and values as a problem: exact bytes, measured losses, decisions of layers and of groups."""

from __future__ import annotations

import pickle
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

import moopt
from moopt.backend.kv import Pair, Scheme, load_preset, packed_cache
from moopt.backend.kv.shape import shape_of
from moopt.backend.metrics import CallableMetric
from moopt.errors import BackendError, MetricError, MooptError, ProblemError, StudyMismatch, TextError
from moopt.problem import Fidelity
from moopt_problems import KVCachePrecision
from tests.backend.conftest import SMALL as TINY
from tests.backend.conftest import make_model

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 256, "context": 128, "held_out": 0, "validation": 0, "profile_tokens": 128,
}  # fmt: skip


@pytest.fixture
def problem(tiny: Path) -> KVCachePrecision:
    return KVCachePrecision(str(tiny), groups="layers", **SMALL)


@pytest.mark.parametrize("scheme", ["kivi", "per-token"])
@pytest.mark.parametrize("groups", ["layers", "pruned", "kvtuner", {"0": ["KV8", "K4V2"], "1": ["KV4", "KV2"]}])
def test_the_bytes_are_those_of_the_cache(tiny: Path, groups: Any, scheme: str) -> None:
    problem = KVCachePrecision(str(tiny), groups=groups, scheme=scheme, **SMALL)
    model = make_model("llama-tied").bfloat16()
    for seed in range(3):
        config = problem.space.sample(np.random.default_rng(seed))
        cache = packed_cache(model, problem.pairs(config), scheme, room=128)
        with torch.inference_mode():
            model(torch.randint(0, 320, (1, 128)), past_key_values=cache)
        assert cache.nbytes == problem.bytes(config) == problem.known(config)["kv_bytes"]
        rows = [(d.options.index(config[d.name]), row) for d, row in zip(problem.decided, problem.costs(), strict=True)]
        assert sum(row[column] for column, row in rows) == problem.bytes(config)


def test_layers_decide_keys_and_values_apart(problem: KVCachePrecision) -> None:
    assert problem.space.names == ("0.k", "0.v", "1.k", "1.v")
    config = {"0.k": 8, "0.v": 2, "1.k": 4, "1.v": 4}
    assert problem.pairs(config) == [Pair(8, 2), Pair(4, 4)]
    assert problem.options()[1][2] == [Pair(16, 8), Pair(16, 16)]
    assert next(iter(problem.baselines())) == "uniform-KV8"
    assert {len(set(problem.pairs(each))) for each in problem.baselines().values()} == {1}


def test_more_bits_lose_less_and_16_lose_nothing(tiny: Path) -> None:
    problem = KVCachePrecision(str(tiny), bits=(2, 4, 8, 16), groups="layers", **SMALL)
    found = [
        problem.evaluate(problem.baselines()[f"uniform-KV{b}"], problem.fidelity).values["kl"] for b in (2, 4, 8, 16)
    ]
    assert found[0] > found[1] > found[2] > found[3] >= -1e-6
    assert abs(found[3]) < 1e-5


@pytest.mark.parametrize("method", ["fisher", "output-error", "one-layer"])
def test_sensitivities_fall_with_the_width(problem: KVCachePrecision, method: str) -> None:
    table = problem.sensitivities(method, 128)
    assert table.shape == (4, 3)
    assert (np.diff(table, axis=1) < 0).all()
    assert (table >= 0).all()
    assert problem.forward_tokens("sensitivity", Fidelity(128, "one-layer")) == 128 * 13
    assert problem.forward_tokens("sensitivity", Fidelity(128, "fisher")) == 3 * 128


def test_a_backward_pass_knows_what_single_layers_lose(tiny: Path) -> None:
    problem = KVCachePrecision(
        str(tiny), scheme=Scheme(8, 8), groups="layers", **{**SMALL, "context": 256, "profile_tokens": 256}
    )
    measured, expected = (problem.sensitivities(method, 2048) for method in ("one-layer", "fisher"))
    assert stats.spearmanr(measured[:, :2].ravel(), expected[:, :2].ravel()).statistic > 0.9
    ratio = (expected[:, :2] / measured[:, :2]).ravel()
    assert 0.3 < np.exp(np.log(ratio).mean()) < 3


def test_a_damaged_profile_is_made_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    whole = KVCachePrecision(str(tiny), groups="pruned", **SMALL).fingerprint()
    (kept,) = (tmp_path / "kv-profiles").iterdir()
    before = kept.read_text()
    for damaged in (before[:100], ""):
        kept.write_text(damaged)
        assert KVCachePrecision(str(tiny), groups="pruned", **SMALL).fingerprint() == whole
        assert kept.read_text() == before


def test_groups_of_ones_own_say_their_widths(tiny: Path) -> None:
    problem = KVCachePrecision(str(tiny), bits=(4, 8), groups={"0": ["KV16", "K2V4"], "1": ["KV16", "KV8"]}, **SMALL)
    assert list(problem.baselines()) == ["uniform-KV16", "largest", "smallest"]
    table = problem.sensitivities("fisher", 128)
    assert table.shape == (2, 2)
    assert (table[:, 1] == 0).all()
    assert (table[:, 0] > 0).all()


def test_groups_choose_pairs_together(tiny: Path) -> None:
    problem = KVCachePrecision(str(tiny), groups="kvtuner", eps=100.0, **SMALL)
    assert sorted(layer for d in problem.decided for layer in d.group.layers) == [0, 1]
    config = {d.name: d.options[0] for d in problem.decided}
    for decision in problem.decided:
        chosen = {problem.pairs(config)[layer] for layer in decision.group.layers}
        assert chosen == {Pair.of(decision.options[0])}
    table = problem.sensitivities("output-error", 128)
    assert np.isfinite(table[:, 0]).all()
    same = KVCachePrecision(str(tiny), groups=[d.group for d in problem.decided], **SMALL)
    assert same.space.names == problem.space.names


@pytest.mark.parametrize("groups", ["layers", "kvtuner"])
def test_a_study_runs_and_resumes_elsewhere(tiny: Path, tmp_path: Path, groups: str) -> None:
    how = {**SMALL, "held_out": 256, "validation": 128}

    def study(**more: Any) -> moopt.Study:
        made = KVCachePrecision(str(tiny), groups=groups, **{**how, **more})
        return moopt.Study("kv", made, "qnehvi", storage=tmp_path / "s.journal")

    found = study().run(trials=14)
    events = len(found.history.events)
    assert len(study().run(trials=14).history.events) == events
    front = found.front()
    assert {"kl", "kv_bytes"} <= set(front.columns)
    assert found.hypervolume() > 0
    with pytest.raises(StudyMismatch, match="context"):
        study(context=64).run(trials=15)


def test_tokens_of_a_profile_are_counted_once(tiny: Path) -> None:
    def tokens(groups: str, sensitivities: str | None) -> int:
        problem = KVCachePrecision(str(tiny), groups=groups, sensitivities=sensitivities, **SMALL)
        return moopt.Study("kv", problem, "random").run(trials=4).history.tokens

    plain = tokens("layers", None)
    assert tokens("pruned", None) == plain + 3 * 128
    assert tokens("layers", "output-error") == plain + 3 * 128
    assert tokens("pruned", "fisher") == plain + 3 * 128


def test_generation_in_a_metric_packs_keys_and_values(tiny: Path) -> None:
    seen = []

    def generate(model: Any) -> float:
        out = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, return_dict_in_generate=True, pad_token_id=0)
        seen.append(out.past_key_values.pairs)
        return float(out.sequences.shape[1])

    def broken(model: Any) -> float:
        raise MetricError("no")

    def careless(model: Any) -> float:
        raise KeyError("nothing")

    metrics = (
        CallableMetric("length", generate), CallableMetric("broken", broken, when="finalists"),
        CallableMetric("careless", careless, when="finalists"),
    )  # fmt: skip
    problem = KVCachePrecision(str(tiny), groups="layers", metrics=metrics, **{**SMALL, "held_out": 128})
    assert [o.name for o in problem.objectives] == ["kl", "kv_bytes", "length"]
    config = problem.baselines()["uniform-K8V4"]
    assert problem.evaluate(config, problem.fidelity).values["length"] > 3
    assert seen[-1] == (Pair(8, 4), Pair(8, 4))
    final = problem.evaluate(config, problem.measurements["held-out"])
    assert final.attributes["broken failed"] == "no"
    assert "KeyError: 'nothing'" in str(final.attributes["careless failed"])
    assert {"kl", "perplexity", "top1_agreement", "length"} == set(final.values)
    plain = problem._ready.evaluator.candidate.model.generate(torch.tensor([[1]]), max_new_tokens=2, pad_token_id=0)
    assert plain.shape[1] > 1
    assert len(seen) == 2


def test_decode_times_are_predicted_and_measured(tiny: Path) -> None:
    problem = KVCachePrecision(
        str(tiny), bits=(4, 8), groups="layers", objectives=("kl", "kv_bytes", "decode_ms"), **SMALL
    )
    config = problem.baselines()["uniform-K8V4"]
    predicted = problem.evaluate(config, problem.fidelity).values["decode_ms"]
    measured = problem.evaluate(config, problem.measurements["latency"])
    assert predicted > 0
    assert measured.values["decode_ms"] > 0
    assert measured.attributes["decode_ms predicted"] == pytest.approx(predicted)
    assert "context 128" in measured.attributes["where"]


def test_a_candidate_is_saved_as_a_preset(problem: KVCachePrecision, tmp_path: Path) -> None:
    config = {"0.k": 8, "0.v": 2, "1.k": 4, "1.v": 4}
    kept = load_preset(problem.save(config, tmp_path / "out" / "preset.json"))
    assert kept.pairs == (Pair(8, 2), Pair(4, 4))
    assert kept.scheme == problem.scheme


def test_layers_that_look_at_a_window_stay_as_they_are(tmp_path: Path, byte_tokenizer: Any) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Qwen2Config(
        **{**TINY, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=40, layer_types=types
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    problem = KVCachePrecision(str(tmp_path), groups="kvtuner", **SMALL)
    assert [d.group.layers for d in problem.decided] == [(1,)]
    chosen = next(iter(problem.baselines().values()))
    assert problem.pairs(chosen)[0] == problem.pairs(chosen)[2] == Pair(16, 16)
    found = problem.evaluate(chosen, problem.fidelity)
    assert np.isfinite(found.values["kl"])
    timed = KVCachePrecision(str(tmp_path), groups="layers", objectives=("kl", "decode_ms"), **SMALL)
    assert timed.evaluate(timed.baselines()["uniform-KV4"], timed.measurements["latency"]).values["decode_ms"] > 0
    packed = problem.scheme.layer_bytes(problem.pairs(chosen)[1], 128, 2, 16)
    assert problem.bytes(chosen) == packed + 2 * 2 * 39 * 2 * 16 * 2
    with pytest.raises(BackendError, match="Layer 0 is none whose cache can be packed"):
        KVCachePrecision(str(tmp_path), groups={"0-2": ["KV4"]}, **SMALL)


def test_a_pickled_problem_holds_no_weights(problem: KVCachePrecision) -> None:
    problem.evaluate(next(iter(problem.baselines().values())), Fidelity(128, 0))
    assert len(pickle.dumps(problem)) < 60_000
    again = KVCachePrecision(**problem.arguments())
    assert again.fingerprint() == problem.fingerprint()


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"bits": (3, 4)}, ProblemError, "expected some of"),
    ({"bits": ()}, ProblemError, "expected some of"),
    ({"bits": (4, 4)}, ProblemError, "each once"),
    ({"bits": 4}, ProblemError, "in a list"),
    ({"objectives": ("kl", "size_mb")}, ProblemError, "kv_bits_effective"),
    ({"objectives": ()}, ProblemError, "kv_bits_effective"),
    ({"scheme": "kvi"}, MooptError, "expected one of kivi, per-token"),
    ({"groups": "kvtune"}, ProblemError, "Got groups='kvtune'"),
    ({"groups": {"0": ["KV4"]}}, BackendError, "Layer 1 is in no group"),
    ({"groups": {"0-1": ["KV5"]}}, MooptError, "Got 5 bits"),
    ({"sensitivities": "hawq"}, ProblemError, "fisher, output-error, one-layer"),
    ({"error": "e_x"}, BackendError, "expected one of e_k"),
    ({"context": 0}, ProblemError, "Got context=0"),
    ({"tokens": -1}, ProblemError, "Got tokens=-1"),
    ({"tokens": 127}, ProblemError, "Got tokens=127 for a context of 128; expected at least one sequence"),
    ({"profile_tokens": 127}, ProblemError, "Got profile_tokens=127"),
    ({"validation": 127}, ProblemError, "Got validation=127"),
    ({"context": 63}, ProblemError, "packs none of 63 tokens"),
    ({"batch": 1.5}, ProblemError, r"Got batch=1\.5"),
    ({"metrics": (CallableMetric("kl", lambda model: 0.0),)}, ProblemError, "give it another"),
])  # fmt: skip
def test_bad_arguments_are_refused(tiny: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        KVCachePrecision(str(tiny), **{**SMALL, **arguments})


def test_text_too_short_is_said_before_any_trial(tiny: Path) -> None:
    with pytest.raises(TextError, match="too short"):
        KVCachePrecision(str(tiny), groups="layers", **{**SMALL, "tokens": 10**7}).setup(moopt.Resources())


def test_heads_of_several_sizes_are_refused() -> None:
    types = ["sliding_attention", "full_attention"]
    config = transformers.Gemma4TextConfig(**TINY, head_dim=16, global_head_dim=32, layer_types=types)
    with pytest.raises(BackendError, match="heads of several sizes"):
        shape_of(config)


def test_an_encoder_caches_nothing() -> None:
    with pytest.raises(ProblemError, match="generates no text"):
        KVCachePrecision("minilm-l6")


def test_attention_that_no_profile_knows_is_searched_by_what_each_layer_loses(
    byte_tokenizer: Any, tmp_path: Path
) -> None:
    own = {"head_dim": 16, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 2}
    transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**TINY, **own)).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=r"no profile knows yet\. Decide layers by themselves .*='one-layer'"):
        KVCachePrecision(str(tmp_path), **SMALL)
    problem = KVCachePrecision(str(tmp_path), groups="layers", **{**SMALL, "sensitivities": "one-layer"})
    history = moopt.Study("gemma", problem, seed=0).run(trials=12).history
    assert len(history.feasible()) == 12
