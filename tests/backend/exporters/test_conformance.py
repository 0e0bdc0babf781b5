"""moopt's own exporters keep to the contract that plug-ins keep to."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from moopt.backend.merging.tasks import TextLoss
from moopt.backend.quantizers import RTN, EoRA
from moopt.problem import Problem
from moopt.space import Config
from moopt.testing.exporters import ExporterSuite
from moopt_problems import BitAllocation, KVCachePrecision, ModelMerge
from tests.backend.merging.conftest import tuned

TEXT: dict[str, Any] = {"text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 0, "validation": 0}
Subject = tuple[Problem, Config]


def bits(model: Path, **how: Any) -> Subject:
    """A quantized model with every option somewhere."""
    problem = BitAllocation(str(model), **{"group_size": 32, "sensitivities": None, **TEXT, **how})
    return problem, {n: d.options[place % len(d.options)] for place, (n, d) in enumerate(problem.decided.items())}


def pairs(model: Path) -> Subject:
    problem = KVCachePrecision(str(model), **TEXT)
    return problem, next(iter(problem.baselines().values()))


class TestMoopt(ExporterSuite):
    format = "moopt"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return bits(tiny)


class TestCheckpoint(ExporterSuite):
    format = "checkpoint"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return bits(tiny, bits=(2, "nf4", 4))


class TestCompressedTensors(ExporterSuite):
    format = "compressed-tensors"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return bits(tiny, target="transformers")


class TestGPTQ(ExporterSuite):
    format = "gptq"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return bits(tiny, bits=(2, 3, 4, 8), tie="linear")


class TestGGUF(ExporterSuite):
    format = "gguf"

    @pytest.fixture
    def subject(self, merging: Path) -> Subject:
        return bits(merging, target="llama.cpp")


class TestPEFT(ExporterSuite):
    format = "peft"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return bits(tiny, bits=(2, 4), quantizer=EoRA(RTN(), ranks=(0, 4, 8)))


class TestKVPreset(ExporterSuite):
    format = "kv-preset"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return pairs(tiny)


class TestKVTuner(ExporterSuite):
    format = "kvtuner"

    @pytest.fixture
    def subject(self, tiny: Path) -> Subject:
        return pairs(tiny)


class TestMergekit(ExporterSuite):
    format = "mergekit"

    @pytest.fixture
    def subject(self, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        place = tmp_path_factory.mktemp("tuned")
        folders = {name: str(tuned(tiny, place / name, seed, 0.05)) for seed, name in enumerate("ab")}
        task = TextLoss("text", textwrap.__file__, tokens=128, context=64)
        problem = ModelMerge(folders, [task], base=str(tiny), validation=False, held_out=False)
        return problem, {name: 0.5 for name in problem.space.names}
