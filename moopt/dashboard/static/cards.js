// Cards on a page: a heading, a sentence, a picture and its table, drawn one after another, what is in sight first.

import { el, number } from "./dom.js";
import { following } from "./ask.js";
import { draw, listen } from "./figure.js";
import { table } from "./table.js";

const AGAIN = 3000; // milliseconds from a question without an answer to the same question

export class Cards {
  // `at` gives a card's address; `select` gets a trial, `choose` the axes of a picture and the range chosen on it.
  constructor(list, at, { select, choose }) {
    Object.assign(this, { list, at, select, choose, all: new Map(), mark: null, busy: false });
    this.watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) this.all.get(entry.target.dataset.card).seen = entry.isIntersecting;
      this.work();
    }, { rootMargin: "400px" });
  }

  show(ids, mark) {
    this.mark = mark;
    for (const id of ids) {
      if (this.all.has(id)) continue;
      const section = outline(id);
      this.all.set(id, { id, section, seen: false, asked: null, answer: following(this.at(id)) });
      this.list.append(section);
      this.watcher.observe(section);
    }
    this.work();
  }

  async work() {
    if (this.busy) return;
    this.busy = true;
    this.list.setAttribute("aria-busy", "true");
    for (let next = this.next(); next; next = this.next()) {
      await this.fill(next);
      await new Promise((done) => setTimeout(done)); // a click in between is answered first
    }
    this.busy = false;
    this.list.setAttribute("aria-busy", "false");
  }

  next() {
    const all = [...this.all.values()];
    return all.find((each) => each.seen && each.asked !== this.mark) ?? all.find((each) => each.asked === null);
  }

  async fill(each) {
    each.asked = this.mark;
    try {
      const told = await each.answer();
      if (told !== each.told) await fillIn(each.section, told, this);
      each.told = told;
    } catch (error) {
      if (!each.told) fillIn(each.section, { reason: error.message }, this);
      setTimeout(() => { each.asked = null; this.work(); }, AGAIN);
    }
  }
}

export async function fillIn(section, told, { select, choose }) {
  section.hidden = !told.title && !told.reason;
  const inside = section.querySelector(".inside");
  if (!section.hidden) {
    if (told.title) section.querySelector("h2").textContent = told.title;
    section.querySelector("p").textContent = told.sentence ?? "";
    if (told.reason) inside.replaceChildren(el("p", { class: "reason" }, told.reason));
    else await picture(inside, told, select, choose);
    const open = inside.querySelector("details")?.open;
    inside.querySelector("details, .scroll")?.remove();
    if (told.table?.rows.length) inside.append(tabled(told, select));
    if (open) inside.querySelector("details").open = true;
  }
  inside.classList.remove("waiting");
}

async function picture(inside, told, select, choose) {
  let plot = inside.querySelector(".figure");
  if (!told.figure) return inside.replaceChildren();
  const first = !plot;
  if (first) {
    const label = `${told.title}. ${told.sentence} The same figures are in the table below.`;
    plot = el("div", { class: "figure", role: "img", "aria-label": label });
    inside.replaceChildren(...(choose ? dragging(plot, told.figure) : []), plot);
  }
  plot.style.height = `${told.figure.layout.height ?? 450}px`;
  await draw(plot, told.figure);
  if (first) listen(plot, select, choose);
}

function dragging(plot, figure) {
  // What dragging over a picture does, where it can choose a range.
  const meta = figure.layout.meta ?? {};
  if (meta.uprights) plot.dataset.drag = "select";
  if (!meta.axes) return [];
  const button = el("button", { "aria-pressed": "false", class: "drag" }, "Drag to choose a range");
  button.addEventListener("click", () => {
    const chosen = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", String(chosen));
    plot.dataset.drag = chosen ? "select" : "";
    Plotly.relayout(plot, { dragmode: chosen ? "select" : "zoom" });
  });
  return [button];
}

export function outline(id) {
  const inside = el("div", { class: "inside waiting" });
  const section = el("section", { "aria-labelledby": `h-${id}` }, el("h2", { id: `h-${id}` }, "…"), el("p", {}, "Drawing …"), inside);
  section.dataset.card = id;
  return section;
}

function tabled(told, select) {
  const { columns, rows, of } = told.table;
  const found = () => {
    const made = table(told.title, columns, rows.map((row) => row.map((cell) => (typeof cell === "number" ? number(cell) : String(cell ?? "–")))));
    const at = columns.indexOf("trial");
    if (at >= 0 && select) {
      [...made.querySelectorAll("tbody tr")].forEach((line, place) => {
        const trial = rows[place][at];
        line.cells[at].replaceChildren(el("button", { class: "plain", onclick: () => select(trial) }, String(trial)));
      });
    }
    return made;
  };
  if (!told.figure) return found();
  const lines = of === rows.length ? `${number(of)} lines` : `the first ${number(rows.length)} of ${number(of)} lines`;
  const folded = el("details", {}, el("summary", {}, `The figures as a table (${lines})`));
  folded.addEventListener("toggle", () => folded.open && !folded.querySelector("table") && folded.append(found()));
  return folded;
}
