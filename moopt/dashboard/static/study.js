// A study's page: its cards, live while it runs, and what is selected in one of them selected in all.

import { ask, following } from "./ask.js";
import { Cards } from "./cards.js";
import { showCandidate } from "./candidate.js";
import { el, problem, say } from "./dom.js";
import { limit, mark } from "./figure.js";
import { Ranges, told } from "./ranges.js";

export async function showStudy(content, query) {
  const [place, name] = [query.get("place"), query.get("study")];
  const at = (what, more = {}) => `/api/${encodeURIComponent(place)}/${what}?${new URLSearchParams({ study: name, ...more })}`;
  const candidate = el("aside", { class: "candidate", "aria-label": "The selected candidate", hidden: true });
  const [head, trouble, list] = [el("header", {}), el("div", { class: "trouble" }), el("div", { class: "cards" })];
  const ranges = new Ranges((chosen) => go({ ranges: Object.keys(chosen).length ? JSON.stringify(chosen) : null }));
  const cards = new Cards(list, (id) => at(`cards/${encodeURIComponent(id)}`), {
    select: (trial) => go({ trial }), choose: (meta, range) => ranges.drag(meta, range),
  });
  const page = following(at("page"));
  document.title = `${name} · moopt`;
  head.append(back(), el("h1", {}, name));
  content.replaceChildren(head, trouble, candidate, ranges.bar, list);

  let [selected, known] = [null, null]; // the trial, and what was known when it was asked for
  function go(changes) {
    const now = new URLSearchParams(location.search);
    for (const [key, value] of Object.entries(changes)) {
      if (value === null) now.delete(key);
      else now.set(key, value);
    }
    history.pushState(null, "", `?${now}`);
    return restore();
  }

  async function restore() {
    // What the address says is selected and chosen.
    const now = new URLSearchParams(location.search);
    const trial = /^\d{1,9}$/.test(now.get("trial") ?? "") ? Number(now.get("trial")) : null;
    if (trial !== selected) {
      selected = trial;
      mark(trial);
      if (trial !== null) say(`Trial ${trial} is selected.`);
      known = null;
    }
    if (known !== cards.mark) showCandidate(candidate, at, trial, () => go({ trial: null }));
    known = cards.mark;
    await limited(now.get("ranges"));
  }

  let [limits, since] = [null, null]; // the ranges last asked for, and what was known then
  async function limited(given) {
    if (given === limits && (given === null || since === cards.mark)) return;
    [limits, since] = [given, cards.mark];
    try {
      ranges.show(given === null ? {} : told(given));
      const found = given === null ? null : await ask(at("within", { ranges: given }));
      if (given !== limits) return;
      limit(found && new Set(found.trials));
      ranges.say(found);
    } catch (error) {
      ranges.say(null, error);
    }
  }

  addEventListener("popstate", restore);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (selected !== null) go({ trial: null });
    else if (limits !== null) go({ ranges: null });
  });

  let [turn, waiting, was] = [Promise.resolve(), false, null]; // was: whether it ran
  function refresh() {
    // One after another: a patch is of the answer before it.
    if (waiting) return turn;
    waiting = true;
    turn = turn.then(async () => {
      waiting = false;
      try {
        const found = await page();
        was = found.running;
        heading(head, found, (trial) => go({ trial }));
        ranges.offer(found.figures);
        cards.show(found.cards, found.mark);
        trouble.replaceChildren();
        await restore();
      } catch (error) {
        trouble.replaceChildren(problem(error));
      }
    });
    return turn;
  }

  await refresh();
  let events = null;
  function listen() {
    // Only while the page is seen: a browser holds six connections to a host, whatever the number of its tabs.
    events?.close();
    events = document.hidden ? null : new EventSource(at("events"));
    if (!events) return;
    events.onmessage = (event) => {
      const { error, mark: now, running } = JSON.parse(event.data);
      if (error) trouble.replaceChildren(problem(new Error(error)));
      else if (now !== cards.mark || running !== was || trouble.hasChildNodes()) refresh();
    };
    events.onerror = () => trouble.replaceChildren(problem(new Error("The dashboard does not answer; this is what it said last.")));
  }
  document.addEventListener("visibilitychange", listen);
  listen();
}

function back() {
  return el("p", { class: "kicker" }, el("a", { href: "/" }, "← All studies"));
}

function heading(head, told, select) {
  const state = told.running ? "running" : told.running === null ? "perhaps running elsewhere" : "at rest";
  const knee = told.knee === null ? null : el("button", { onclick: () => select(told.knee) }, `Select the knee, trial ${told.knee}`);
  head.replaceChildren(
    back(), el("h1", {}, told.name),
    ...told.lead.map((line) => el("p", { class: "lead" }, line)),
    ...(told.findings.length ? [el("ul", { class: "findings" }, told.findings.map((line) => el("li", {}, line)))] : []),
    el("p", { class: told.running ? "state live" : "state" }, state), ...(knee ? [knee] : []),
  );
}
