// Ranges of figures that candidates are chosen by: dragged over a picture, or written into fields.

import { el, number, problem, say } from "./dom.js";

export function told(text) {
  // The ranges in an address: a mapping from names to [least, greatest], null where there is no bound.
  try {
    const found = JSON.parse(text);
    if (Object.values(found).every((range) => Array.isArray(range) && range.length === 2)) return found;
  } catch {
    // said below
  }
  throw new Error("The address has ranges that cannot be read.");
}

export class Ranges {
  constructor(choose) {
    Object.assign(this, { choose, now: {}, names: "" });
    this.fields = el("div", { class: "fields" });
    this.said = el("p", { class: "chosen", role: "status", hidden: true });
    this.bar = el("div", { class: "ranges", hidden: true }, el("details", {}, el("summary", {}, "Choose candidates by their figures"), this.fields), this.said);
  }

  offer(figures) {
    // Fields for all figures; those that are there stay, whoever writes in them.
    this.bar.hidden = !figures.length;
    if (this.names === JSON.stringify(figures)) return;
    this.names = JSON.stringify(figures);
    this.fields.replaceChildren(...figures.map(({ name, label }) => {
      const [least, greatest] = ["at least", "at most"].map((bound, end) => {
        const field = el("input", { type: "number", step: "any", "aria-label": `${label}, ${bound}`, placeholder: bound });
        field.dataset.name = name;
        field.addEventListener("change", () => this.set(name, end, field.value === "" ? null : Number(field.value)));
        return field;
      });
      return el("div", {}, el("span", {}, label), least, greatest);
    }));
    this.fill();
  }

  set(name, end, value) {
    const range = [...(this.now[name] ?? [null, null])];
    range[end] = value;
    this.add({ [name]: range });
  }

  add(ranges) {
    const all = { ...this.now, ...ranges };
    this.choose(Object.fromEntries(Object.entries(all).filter(([, range]) => range.some((bound) => bound !== null))));
  }

  drag({ axes, uprights }, { x, y }) {
    // A box over a plane is a range of either objective, one over uprights a range of each that it crosses.
    const [left, right, low, high] = [Math.min(...x), Math.max(...x), Math.min(...y), Math.max(...y)];
    if (axes) return this.add({ [axes.x]: [short(left), short(right)], [axes.y]: [short(low), short(high)] });
    const crossed = uprights.filter((_, place) => left <= place && place <= right);
    const value = (upright, height) => {
      const found = upright.worse + height * (upright.better - upright.worse);
      return short(upright.logs ? 10 ** found : found);
    };
    return this.add(Object.fromEntries(crossed.map((upright) => {
      const ends = [low > 0 ? value(upright, low) : null, high < 1 ? value(upright, high) : null];
      return [upright.name, upright.better < upright.worse ? ends.reverse() : ends];
    })));
  }

  show(ranges) {
    this.now = ranges;
    this.fill();
  }

  fill() {
    for (const [place, field] of [...this.fields.querySelectorAll("input")].entries()) {
      if (field !== document.activeElement) field.value = this.now[field.dataset.name]?.[place % 2] ?? "";
    }
  }

  say(found, error) {
    this.said.hidden = !found && !error;
    if (error) this.said.replaceChildren(problem(error), this.all());
    if (!found) return;
    const words = Object.entries(this.now).map(([name, [least, greatest]]) =>
      `${name} ${[least === null ? "" : `from ${number(least)}`, greatest === null ? "" : `to ${number(greatest)}`].join(" ").trim()}`);
    const text = `${number(found.on_front)} of ${number(found.front)} points of the front, and ${number(found.trials.length)} candidates in all, have ${words.join(" and ")}.`;
    this.said.replaceChildren(text, " ", this.all());
    say(text);
  }

  all() {
    return el("button", { onclick: () => this.choose({}) }, "Show all");
  }
}

function short(value) {
  return Number(value.toPrecision(5));
}
