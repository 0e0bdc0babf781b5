"""What the dashboard takes to show a long study, and what it sends while the study runs, in a headless Chromium.

    python studies/benchmarks/dashboard.py

5,000 trials of 120 decisions in a journal, served by a process of its own: the list and the study's page in a fresh
browser, once right after the server has begun and once when it has read everything, then 10 trials more. Exits with an
error if a limit is broken. `--quick` takes 500 trials.
"""

import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import date
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

import moopt
from moopt.algorithms import NSGA2
from moopt.dashboard.library import key
from moopt_problems.synthetic import BitToy

TRIALS = 500 if "--quick" in sys.argv else 5_000
MORE = 10
MOST = {"list": 1.0, "front drawn": 2.0, "front drawn, the page's own thread": 2.0, "candidate": 0.5, "marked": 0.1}
"""Seconds; those of the page's own thread are of work alone, whatever else the machine does."""
MOST_SENT = 0.25
"""Of an update, as a share of what a fresh load takes."""
DRAWN = "[data-card=front] .figure .scatterlayer .trace"


def search(path, trials):
    moopt.Study("benchmark", BitToy(120), NSGA2(100), storage=path, seed=0).run(trials)


def looked(browser, address, query):
    """Seconds of everything on the way to a candidate, in a browser that has seen nothing yet."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    own = context.new_cdp_session(page)
    own.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.perf_counter()
    page.goto(address)
    page.locator(".studies a").first.wait_for()
    took = {"list": time.perf_counter() - began}
    began = time.perf_counter()
    page.goto(f"{address}study?{query}")
    page.locator(DRAWN).first.wait_for()
    took["front drawn"] = time.perf_counter() - began
    metrics = {each["name"]: each["value"] for each in own.send("Performance.getMetrics")["metrics"]}
    took["front drawn, the page's own thread"] = metrics["TaskDuration"]
    page.wait_for_function("() => ![...document.querySelectorAll('section')].some((s) => s.querySelector('.waiting'))")
    began = time.perf_counter()
    page.locator("header button").click()
    page.locator(".candidate h2").wait_for()
    took["candidate"] = time.perf_counter() - began
    marked = "(async () => { const f = await import('/static/figure.js'); const t = performance.now(); f.mark(7); "
    took["marked"] = page.evaluate(f"{marked} return (performance.now() - t) / 1000; }})()")
    return page, took


def cards(address, place, tags):
    """The bytes, as they are sent, of every card for a browser that has those of `tags`."""

    def asked(what, **more):
        url = f"{address}api/{place}/{what}?{urlencode({'study': 'benchmark', **more})}"
        request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request) as answer:
            body = answer.read()
            return len(body), json.loads(gzip.decompress(body) if answer.headers["Content-Encoding"] else body)

    sizes, now = {}, {}
    _, page = asked("page")
    for what in ["page", *(f"cards/{name}" for name in page["whole"]["cards"])]:
        sizes[what], told = asked(what, **({"tag": tags[what]} if what in tags else {}))
        now[what] = told["tag"]
    return sizes, now


def measured(folder):
    path = str(folder / "moopt.journal")
    search(path, TRIALS)
    command = [sys.executable, "-m", "moopt.cli", "dashboard", path, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    kept = []
    try:
        address = server.stderr.readline().split(" at ")[1].split()[0]
        query, place = urlencode({"place": key(path), "study": "benchmark"}), key(path)
        with sync_playwright() as run:
            browser = run.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for when in ("at once", "read before"):
                page, took = looked(browser, address, query)
                for what, seconds in took.items():
                    kept.append(seconds < MOST[what])
                    print(f"{when}: {what} {1000 * seconds:.0f} ms (under {1000 * MOST[what]:.0f})")
            whole, tags = cards(address, place, {})
            search(path, TRIALS + MORE)
            page.wait_for_function(f"() => document.querySelector('header').textContent.includes('{TRIALS + MORE:,}')")
            sent, _ = cards(address, place, tags)
            browser.close()
    finally:
        server.terminate()
    for what in whole:
        print(f"{what}: {whole[what]:,} bytes afresh, {sent[what]:,} after {MORE} more trials")
    share = sum(sent.values()) / sum(whole.values())
    print(f"all: {sum(whole.values()):,} bytes afresh, {sum(sent.values()):,} after {MORE} more trials ", end="")
    print(f"({share:.0%}, under {MOST_SENT:.0%})")
    return [*kept, share < MOST_SENT]


if __name__ == "__main__":
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, ", end="")
    print(f"Python {platform.python_version()}; {TRIALS} trials, 120 decisions")
    folder = Path(tempfile.mkdtemp(prefix="moopt-benchmark-"))
    try:
        kept = measured(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("PASS" if all(kept) else "FAIL")
    sys.exit(0 if all(kept) else "A limit is broken.")
