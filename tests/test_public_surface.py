import subprocess
import sys
from pathlib import Path

import pytest

import moopt
from moopt import algorithms

ROOT = Path(moopt.__file__).parents[1]


def test_exported_names():
    assert sorted(moopt.__all__) == [
        "Choice", "Config", "Constraint", "Evaluation", "Fidelity", "Float", "History", "Integer", "Objective",
        "Ordinal", "Preference", "Problem", "Resources", "Simplex", "Space", "Study", "Trial", "__version__",
        "algorithms", "errors", "load", "load_history", "optuna_sampler", "packed_cache",
    ]  # fmt: skip
    assert all(getattr(moopt, name) is not None for name in moopt.__all__)
    assert dir(moopt) == sorted(moopt.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Studdy"):
        moopt.Studdy  # noqa: B018


@pytest.mark.parametrize("module", ["moopt", "moopt.algorithms", "moopt.problem", "moopt.errors"])
def test_importing_is_light(module: str):
    heavy = "{'torch', 'pandas', 'optuna', 'pymoo', 'transformers', 'plotly'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["kernels", "problems"])
def test_folders_of_packages_are_no_packages(folder: str):
    assert not (ROOT / folder / "__init__.py").exists(), f"{folder} is the import name of another project"


def test_every_algorithm_name_makes_one():
    for name in algorithms.NAMES:
        assert isinstance(algorithms.create(name), algorithms.Algorithm)
    with pytest.raises(moopt.errors.AlgorithmError, match="nsga2, nsga3"):
        algorithms.create("nsga-2")
