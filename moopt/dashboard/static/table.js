// Tables of text: columns of numbers to the right.

import { el } from "./dom.js";

export function table(caption, columns, rows) {
  const numbers = columns.map((_, place) => rows.length > 0 && rows.every((row) => isNumber(row[place] ?? "–")));
  return el(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, columns.map((name, place) => el("th", { scope: "col", class: numbers[place] ? "n" : null }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", { class: isNumber(cell) ? "n" : null }, cell))))),
    ),
  );
}

function isNumber(cell) {
  return /^[–\d.,%-]+$/.test(cell);
}
