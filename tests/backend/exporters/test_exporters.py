"""Exports: every format writes what was searched, whole or not at all, and refuses what it cannot hold."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import moopt
from moopt import exporting
from moopt.backend.exporters.words import words
from moopt.backend.kv import load_preset
from moopt.backend.merging.tasks import TextLoss
from moopt.cli import app
from moopt.errors import ExportError, StudyError, StudyMismatch
from moopt_problems import BitAllocation, KVCachePrecision, ModelMerge
from moopt_problems.synthetic import BitToy
from tests.backend.conftest import FAMILIES, MIXTURES
from tests.backend.merging.conftest import tuned

TEXT = textwrap.__file__
SMALL: dict[str, Any] = {"text": TEXT, "tokens": 128, "context": 64, "held_out": 128, "validation": 0}


@pytest.fixture(scope="module")
def study(tiny: Path) -> moopt.Study:
    problem = BitAllocation(str(tiny), bits=(2, 3, 4, 6, 8), group_size=32, sensitivities=None, **SMALL)
    return moopt.Study("bits <b>", problem, "random").run(trials=8)


@pytest.fixture(scope="module")
def merges(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> moopt.Study:
    place = tmp_path_factory.mktemp("tuned")
    folders = {n: str(tuned(tiny, place / n, seed, 0.05)) for seed, n in enumerate("ab")}
    task = TextLoss("text", TEXT, tokens=128, context=64)
    return moopt.Study("merge", ModelMerge(folders, [task], base=str(tiny), held_out=False), "random").run(trials=4)


def last(study: moopt.Study) -> int:
    return len(study.history.trials) - 1


def test_moopts_own_file_is_as_large_as_the_search_said_and_runs(study: moopt.Study, tmp_path: Path) -> None:
    trial = last(study)
    found = study.export(trial, "moopt", tmp_path / "out")
    file = found.path / "model.safetensors"
    assert file.stat().st_size == found.manifest["size"] == study.problem.bytes(study.history.trials[trial].config)
    assert moopt.load(file).generation_config is not None


def test_what_was_promised_stands_beside_it(study: moopt.Study, tmp_path: Path, tiny: Path) -> None:
    trial = study.history.front()[0]
    found = study.export(trial.number, "moopt", tmp_path / "out")
    assert exporting.read(found.path).manifest == json.loads((found.path / "moopt.json").read_text())
    figures = found.manifest["figures"]
    assert figures["kl"]["search"] == trial.values["kl"]
    assert figures["kl"]["held-out"] == study.history.measures[trial.number, "held-out"].values["kl"]
    assert figures["size_mb"]["known"]
    assert found.manifest["identity"]["problem"] == "BitAllocation"
    card = (found.path / "README.md").read_text()
    assert card.startswith('---\ntags: ["moopt"]\n---')
    assert "the study bits \\<b\\>, found" in card
    assert str(tiny) not in card
    assert "| kl | " in card
    assert "moopt.load" in card


def test_a_checkpoint_computes_what_was_searched(study: moopt.Study, tmp_path: Path, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    trial = last(study)
    found = study.export(trial, "checkpoint", tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.float32)
    packed = moopt.load(
        study.export(trial, "moopt", tmp_path / "packed").path / "model.safetensors", dtype=torch.float32
    )
    ids = torch.arange(1, 33)[None]
    with torch.inference_mode():
        difference = (plain(ids).logits - packed(ids).logits).abs().max()
        original = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)(ids).logits
        moved = (plain(ids).logits - original).abs().max()
    assert difference < 0.1 * moved


def test_words_are_streams_of_bits() -> None:
    codes = torch.randint(0, 8, (5, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = words(codes, 3)
    assert found.shape == (5, 4)  # 120 bits in words of 32
    assert found.dtype == torch.int32
    for row, told in zip(codes.tolist(), found.numpy().view(np.uint32).tolist(), strict=True):
        stream = sum(word << (32 * i) for i, word in enumerate(told))
        assert [(stream >> (3 * i)) & 7 for i in range(40)] == row


def test_compressed_tensors_has_a_group_for_each_width(study: moopt.Study, tmp_path: Path) -> None:
    trial = last(study)
    found = study.export(trial, "compressed-tensors", tmp_path / "out")
    file = found.path / "model.safetensors"
    assert abs(file.stat().st_size - found.manifest["size"]) < 20_000  # the header
    config = json.loads((found.path / "config.json").read_text())["quantization_config"]
    widths = study.problem.widths(study.history.trials[trial].config)
    told = {n: g["weights"]["num_bits"] for g in config["config_groups"].values() for n in g["targets"]}
    assert told == {name: width for name, width in widths.items() if "embed" not in name}
    assert {group["format"] for group in config["config_groups"].values()} == {"pack-quantized"}
    tensors = load_file(file)
    assert set(told) == {n.removesuffix(".weight_packed") for n in tensors if n.endswith(".weight_packed")}
    assert any("larger than moopt's own" in note for note in found.manifest["notes"])


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(
    tiny: Path, tmp_path: Path, merges: moopt.Study
) -> None:
    problem = BitAllocation(
        str(tiny), bits=(4, 8), group_size=32, quantizer="matgptq", sensitivities=None, calibration_tokens=256, **SMALL
    )
    sliced = moopt.Study("sliced", problem, "random").run(trials=3)
    with pytest.raises(ExportError, match=r"has codes that compressed-tensors lacks .* Search with .*'rtn'"):
        sliced.export(0, "compressed-tensors", tmp_path / "out")
    toy = moopt.Study("toy", BitToy(3), "random").run(trials=3)
    for format, match in (
        ("moopt", "BitToy decides no weights"),
        ("kvtuner", "BitToy does not decide"),
        ("mergekit", "this is a BitToy"),
        ("onnx", "There is no format 'onnx'; expected one of checkpoint, compressed-tensors, "),
    ):
        with pytest.raises(ExportError, match=match):
            toy.export(0, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_taken_and_a_trial_that_is_not_there_are_refused(study: moopt.Study, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        study.export(0, "moopt", tmp_path / "out")
    with pytest.raises(StudyError, match="has no completed trial 99"):
        study.export(99, "moopt", tmp_path / "new")


def test_an_altered_file_is_refused(study: moopt.Study, tmp_path: Path) -> None:
    found = study.export(0, "moopt", tmp_path / "out")
    file = found.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ExportError, match=r"model\.safetensors is not what was exported"):
        exporting.read(found.path)
    file.unlink()
    with pytest.raises(ExportError, match=r"lacks model\.safetensors"):
        exporting.read(found.path)
    with pytest.raises(ExportError, match="is no export"):
        exporting.read(tmp_path)


def test_a_merge_is_exported_as_weights_and_as_a_recipe(merges: moopt.Study, tmp_path: Path) -> None:
    trial = last(merges)
    whole = merges.export(trial, "checkpoint", tmp_path / "whole")
    merged = load_file(whole.path / "model.safetensors")
    recipe = merges.problem.recipe(merges.history.trials[trial].config)
    wanted = dict(merges.problem._ready.merger.tensors(recipe))
    assert all(torch.equal(merged[name], tensor) for name, tensor in wanted.items())
    card = (whole.path / "README.md").read_text()
    assert "license" not in card  # the files of none of them say
    told = json.loads((merges.export(trial, "mergekit", tmp_path / "recipe").path / "mergekit.yaml").read_text())
    assert told["merge_method"] == "task_arithmetic"
    assert [each["parameters"]["weight"] for each in told["models"]] == [recipe.weights[n][""] for n in "ab"]


def test_licences_that_differ_are_said(tiny: Path, tmp_path: Path) -> None:
    folders = {n: tuned(tiny, tmp_path / n, seed, 0.05) for seed, n in enumerate("ab")}
    (folders["a"] / "README.md").write_text('---\nlicense: "mit" # see LICENSE\n---\n')
    (folders["b"] / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    task = TextLoss("text", TEXT, tokens=128, context=64)
    problem = ModelMerge({n: str(p) for n, p in folders.items()}, [task], method="slerp", held_out=False)
    study = moopt.Study("merge", problem, "random").run(trials=1)
    manifest = study.export(0, "checkpoint", tmp_path / "out").manifest
    assert manifest["licence"] == ""
    assert "a: mit; b: cc-by-nc-4.0" in manifest["notes"][0]
    assert not {"moopt.json", "README.md"} & set(manifest["files"])
    (folders["b"] / "README.md").write_text("---\nlicense: mit\n---\n")
    assert study.export(0, "checkpoint", tmp_path / "again").manifest["licence"] == "mit"


def test_pairs_are_exported_as_presets(tiny: Path, tmp_path: Path) -> None:
    problem = KVCachePrecision(str(tiny), groups="layers", profile_tokens=64, **{**SMALL, "held_out": 0})
    study = moopt.Study("kv", problem, "random").run(trials=4)
    trial = last(study)
    preset = load_preset(study.export(trial, "kv-preset", tmp_path / "preset").path / "kv-preset.json")
    assert list(preset.pairs) == problem.pairs(study.history.trials[trial].config)
    text = (study.export(trial, "kvtuner", tmp_path / "tuner").path / "kvtuner.yaml").read_text()
    assert "0: {nbits_key: " in text


def test_the_command_line_exports_and_says_how_to_serve_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bits.py").write_text(
        "import moopt\nfrom moopt_problems import BitAllocation\n"
        f"problem = BitAllocation({str(tiny)!r}, bits=(4, 8), group_size=32, sensitivities=None, "
        f"text={TEXT!r}, tokens=128, context=64, held_out=0, validation=0)\n"
        "study = moopt.Study('bits', problem, 'random', 'bits.journal')\n"
    )
    runner = CliRunner()
    assert runner.invoke(app, ["run", "bits.py:study", "--trials", "4"]).exit_code == 0
    asked = ["export", "bits.py:study", "--trial", "0", "--format", "compressed-tensors", "--out", "served"]
    found = runner.invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert "vllm serve served" in found.output
    assert exporting.read("served").manifest["study"]["trial"] == 0


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_a_checkpoint_of_every_family_has_all_that_its_model_has(save: Any, tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    problem = BitAllocation(str(save(family)), bits=(4, 8), group_size=32, sensitivities=None, **SMALL)
    study = moopt.Study("family", problem, "random").run(trials=1)
    found = study.export(0, "checkpoint", tmp_path / "out")
    model, told = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"], told
    assert not told["unexpected_keys"], told
    ids = torch.arange(1, 33)[None]
    with torch.inference_mode():
        wanted = AutoModelForCausalLM.from_pretrained(save(family), dtype=torch.float32)(ids).logits
        assert torch.nn.functional.cosine_similarity(model(ids).logits, wanted, dim=-1).min() > 0.9


def test_a_study_is_exported_by_the_problem_it_was_run_with(tmp_path: Path, tiny: Path) -> None:
    place = tmp_path / "bits.journal"
    how: dict[str, Any] = {"bits": (4, 8), "sensitivities": None, **SMALL}
    moopt.Study("s", BitAllocation(str(tiny), group_size=32, **how), "random", place).run(trials=2)
    other = moopt.Study("s", BitAllocation(str(tiny), group_size=64, **how), "random", place)
    with pytest.raises(StudyMismatch, match="was run with another problem: group_size was 32, is 64"):
        other.export(0, "moopt", tmp_path / "out")
    same = moopt.Study("s", BitAllocation(str(tiny), group_size=32, **how), "nsga2", place, seed=7)
    assert same.export(0, "moopt", tmp_path / "out").manifest["identity"]["group_size"] == 32


def test_paths_that_cannot_be_written_are_said(study: moopt.Study, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(ExportError, match="link exists already"):
        study.export(0, "moopt", tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        study.export(0, "moopt", tmp_path / "file" / "out")
    with pytest.raises(ExportError, match="Got the path None; expected the name of a folder"):
        study.export(0, "moopt", None)  # type: ignore[arg-type]


def test_a_folder_that_appears_meanwhile_is_not_taken_for_ours(
    study: moopt.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "card", lambda manifest: str((tmp_path / "out" / "theirs").mkdir(parents=True)))
    with pytest.raises(ExportError, match="out cannot be written"):
        study.export(0, "moopt", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["theirs"]


def test_tokenizers_with_folders_are_exported(save: Any, tmp_path: Path, byte_tokenizer: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(save("llama"), folder)
    byte_tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ messages }}{{ tools }}"}
    byte_tokenizer.save_pretrained(folder)
    byte_tokenizer.chat_template = None
    problem = BitAllocation(str(folder), bits=(4, 8), group_size=32, sensitivities=None, **SMALL)
    study = moopt.Study("chat", problem, "random").run(trials=1)
    found = study.export(0, "moopt", tmp_path / "out")
    assert any("tool_use" in name for name in found.manifest["files"])
    assert exporting.read(found.path).serve


def test_a_gate_holds_an_export_to_bounds(study: moopt.Study, tmp_path: Path) -> None:
    found = study.export(study.history.front()[0].number, "moopt", tmp_path / "out")
    kl, size = found.manifest["figures"]["kl"]["held-out"], found.manifest["size"] / 1e6
    runner = CliRunner()
    good = runner.invoke(app, ["gate", str(found.path), "--max-kl", str(kl), "--max-size", str(size)])
    assert good.exit_code == 0, good.output
    assert "PASS kl" in good.output
    assert "(held-out)" in good.output
    bad = runner.invoke(app, ["gate", str(found.path), "--max-kl", str(kl), "--max-size", str(size / 2), "--json"])
    assert bad.exit_code == 1
    assert [check["holds"] for check in json.loads(bad.stdout)["checks"]] == [True, False]
    for arguments, says in (
        ([], "Say what to hold it to"),
        (["--bound", "speed <= 3"], "'speed' is no figure of this export; expected one of kl, size_mb"),
    ):
        refused = runner.invoke(app, ["gate", str(found.path), *arguments])
        assert refused.exit_code == 2
        assert says in " ".join(refused.output.split())
    (found.path / "model.safetensors").write_bytes(b"altered")
    damaged = runner.invoke(app, ["gate", str(found.path), "--max-kl", "99"])
    assert damaged.exit_code == 2


def test_a_licence_is_that_of_the_base(tmp_path: Path, tiny: Path) -> None:
    from moopt.backend import models

    assert models.licence("smollm2-135m") == "apache-2.0"
    assert models.licence(str(tiny)) == ""


def test_every_format_says_who_reads_it() -> None:
    found = exporting.formats()
    assert {"moopt", "checkpoint", "compressed-tensors", "mergekit", "kv-preset", "kvtuner"} <= set(found)
    assert not [name for name, about in found.items() if "cannot be loaded" in about]
