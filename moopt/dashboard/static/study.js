// A study's page: its cards, live while it runs, and what is selected in one of them selected in all.

import { ask, el, number, problem, say } from "./dom.js";
import { draw, forget, listen, mark, prepare } from "./figure.js";
import { showCandidate, table } from "./candidate.js";

export async function showStudy(content, query) {
  const [place, name] = [query.get("place"), query.get("study")];
  const at = (what) => `/api/${encodeURIComponent(place)}/${what}?${new URLSearchParams({ study: name })}`;
  const sections = new Map();
  const candidate = el("aside", { class: "candidate", "aria-label": "The selected candidate", hidden: true });
  let selected = query.has("trial") ? Number(query.get("trial")) : null;
  let tag = null;

  const select = (trial, kept = false) => {
    selected = trial;
    const now = new URLSearchParams(location.search);
    if (trial === null) now.delete("trial");
    else now.set("trial", trial);
    if (!kept) history.pushState(null, "", `?${now}`);
    mark(trial);
    if (trial !== null) say(`Trial ${trial} is selected.`);
    showCandidate(candidate, at, trial, () => select(null));
  };
  addEventListener("popstate", () => {
    const trial = new URLSearchParams(location.search).get("trial");
    select(trial === null ? null : Number(trial), true);
  });
  addEventListener("keydown", (event) => event.key === "Escape" && selected !== null && select(null));

  const head = el("header", {});
  const cards = el("div", { class: "cards" });
  content.replaceChildren(head, candidate, cards);
  document.title = `${name} · moopt`;

  async function refresh() {
    let answer;
    try {
      answer = await ask(at("page"), tag ? { "if-none-match": tag } : {});
    } catch (error) {
      head.replaceChildren(back(), el("h1", {}, name), problem(error));
      return;
    }
    if (answer === null) return;
    tag = answer.tag;
    const told = answer.told;
    heading(head, told, select);
    current = told.mark;
    for (const id of told.cards) {
      if (!sections.has(id)) {
        const section = outline(id);
        sections.set(id, { section, seen: false, mark: null });
        cards.append(section);
        watcher.observe(section);
      }
    }
    for (const [id, each] of sections) if (each.seen && each.mark !== current) fill(id);
  }

  let current = null;
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const id = entry.target.dataset.card;
      const each = sections.get(id);
      each.seen = entry.isIntersecting;
      if (each.seen && each.mark !== current) fill(id);
    }
  }, { rootMargin: "400px" });

  async function fill(id) {
    const each = sections.get(id);
    each.mark = current;
    const { told } = await ask(at(`cards/${encodeURIComponent(id)}`)).catch((error) => ({ told: { reason: error.message } }));
    const section = each.section;
    section.hidden = !told.title && !told.reason;
    if (section.hidden) return;
    if (told.title) section.querySelector("h2").textContent = told.title;
    section.querySelector("p").textContent = told.sentence ?? "";
    const inside = section.querySelector(".inside");
    inside.classList.remove("waiting");
    if (told.reason) {
      inside.replaceChildren(el("p", { class: "reason" }, told.reason));
      return;
    }
    let plot = inside.querySelector(".figure");
    if (told.figure) {
      if (!plot) {
        plot = el("div", { class: "figure", role: "img", "aria-label": `${told.title}. ${told.sentence} The same figures are in the table below.` });
        inside.replaceChildren(plot);
      }
      plot.style.height = `${told.figure.layout.height ?? 450}px`;
      const first = !plot.classList.contains("js-plotly-plot");
      await draw(plot, told.figure, selected);
      if (first) listen(plot, select);
    } else {
      inside.replaceChildren();
    }
    inside.querySelector("details, .scroll")?.remove();
    if (told.table.rows.length) inside.append(tabled(told, select));
    forget();
  }

  await prepare();
  await refresh();
  if (selected !== null) select(selected, true);
  for (const [id, each] of sections) if (each.mark === null) await fill(id); // what is not in sight yet, one by one
  const events = new EventSource(at("events"));
  events.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.error) head.querySelector(".state")?.replaceChildren(told.error);
    else refresh();
  };
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

function outline(id) {
  const inside = el("div", { class: "inside waiting" });
  const section = el("section", { "aria-labelledby": `h-${id}` }, el("h2", { id: `h-${id}` }, "…"), el("p", {}, "Drawing …"), inside);
  section.dataset.card = id;
  return section;
}

function tabled(told, select) {
  const found = table(told.title, told.table.columns, told.table.rows.map((row) => row.map((cell) => (typeof cell === "number" ? number(cell) : String(cell ?? "–")))));
  const at = told.table.columns.indexOf("trial");
  if (at >= 0) {
    [...found.querySelectorAll("tbody tr")].forEach((row, place) => {
      const trial = told.table.rows[place][at];
      row.cells[at].replaceChildren(el("button", { class: "plain", onclick: () => select(trial) }, String(trial)));
    });
  }
  if (!told.figure) return found;
  const lines = told.table.of === told.table.rows.length ? `${number(told.table.of)} lines` : `the first ${number(told.table.rows.length)} of ${number(told.table.of)} lines`;
  return el("details", {}, el("summary", {}, `The figures as a table (${lines})`), found);
}
