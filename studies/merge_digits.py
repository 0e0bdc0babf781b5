"""Merge vision transformers tuned to turned digits: which mixture is good at what? Tunes them first, in minutes.

python studies/merge_digits.py                 three models, MAP, a report
python studies/merge_digits.py --models 8 --algorithm nested-map
"""

import argparse
from pathlib import Path

import moopt
from moopt import report
from moopt_problems import ModelMerge
from moopt_problems.synthetic import digits_models

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", type=int, default=3, help="how many are merged, 2 to 8")
parser.add_argument("--method", default="task_arithmetic", help="how: see moopt.backend.merging.METHODS")
parser.add_argument("--algorithm", default="map")
parser.add_argument("--trials", type=int, default=80)
parser.add_argument("--out", type=Path, default=Path("runs/merge_digits"))
asked = parser.parse_args()

folders = digits_models.tuned(count=asked.models)
base = folders.pop("base")
problem = ModelMerge(folders, digits_models.tasks(count=asked.models), base=base, method=asked.method)

asked.out.mkdir(parents=True, exist_ok=True)
name = f"{asked.models} models, {asked.method}, {asked.algorithm}"
study = moopt.Study("digits", problem, asked.algorithm, asked.out / f"{name}.journal")
study.run(trials=asked.trials)
print(study.front().to_string(float_format="{:.3f}".format))
print("Report:", report.write_report(study.history, asked.out / f"{name}.html"))
