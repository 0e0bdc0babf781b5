"""What a report weighs and how soon it is seen: written from a storage, opened from a file in headless Chromium.

    python studies/benchmarks/report.py
    python studies/benchmarks/report.py report.html      # what `make demo` wrote, or any other

Studies of 200 and of 5,000 trials of 120 decisions. Exits with an error if a limit is broken, or if a page says
something on its console or asks for anything but itself.
"""

import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from playwright.sync_api import sync_playwright

import moopt
from moopt.algorithms import NSGA2
from moopt.report import write_report
from moopt_problems.synthetic import BitToy

MOST_BYTES = 8_000_000
MOST_TO_OPEN = {200: 3.0, 5_000: 5.0}
"""Seconds until every figure is drawn, by the number of trials."""
RUNS = 5
"""Times a page is opened, each in a fresh context; the quickest counts: what else a machine does only slows it."""


def opened(browser, path):
    """Seconds until the first and until all of a page's figures are drawn, and what it said or asked for."""
    said = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: said.append(asked.url) if asked.url != path.as_uri() else None)
        began = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.locator(".figure .main-svg").first.wait_for(state="attached")
        first = time.perf_counter() - began
        page.wait_for_load_state("load")
        page.locator(".figure:not(:has(.main-svg))").first.wait_for(state="detached")
        return first, time.perf_counter() - began, said


def written(trials, folder):
    """A report of so many trials, and what it is."""
    journal, path = folder / f"{trials}.journal", folder / f"{trials}.html"
    moopt.Study("benchmark", BitToy(120), NSGA2(100), storage=journal).run(trials)
    history = moopt.load_history(journal)
    began = time.perf_counter()
    write_report(history, path)
    took = time.perf_counter() - began
    return path, f"{trials} trials, {len(history.front())} on the front, written in {took:.1f} s"


def holds(browser, path, what, most):
    """Whether a report is small, and drawn within so many seconds."""
    first, last, said = zip(*(opened(browser, path) for _ in range(RUNS)), strict=True)
    first, last, size = min(first), min(last), path.stat().st_size
    kept = size < MOST_BYTES and last < most and not any(said)
    print(
        f"{'PASS' if kept else 'FAIL'} {what}: {size:,} bytes (under {MOST_BYTES:,}), "
        f"first figure after {first:.2f} s, all after {last:.2f} s (under {most:g})"
    )
    print(*dict.fromkeys(line for lines in said for line in lines), sep="\n", end="")
    return kept


if __name__ == "__main__":
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    chromium = shutil.which("chromium") or sys.exit("There is no chromium; Debian's: apt-get install chromium")
    given = [Path(path).resolve() for path in sys.argv[1:]]
    folder = Path(tempfile.mkdtemp(prefix="moopt-benchmark-"))
    try:
        with sync_playwright() as run:
            browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            kept = [holds(browser, path, path.name, MOST_TO_OPEN[200]) for path in given]
            for trials, most in MOST_TO_OPEN.items() if not given else ():
                kept.append(holds(browser, *written(trials, folder), most))
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if all(kept) else "A limit is broken.")
