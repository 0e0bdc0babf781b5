// A candidate's page: its figures, how it compares with the nearest baseline, its decisions, and how to have it.

import { ask } from "./ask.js";
import { el, number, problem } from "./dom.js";
import { table } from "./table.js";

let [turn, shown] = [0, null]; // the newest question, and what was answered to the one before

export async function showCandidate(place, at, trial, close) {
  const mine = ++turn;
  place.hidden = trial === null;
  if (trial === null) return place.replaceChildren((shown = ""));
  let told;
  try {
    told = await ask(at(`trials/${encodeURIComponent(trial)}`));
  } catch (error) {
    if (mine === turn) place.replaceChildren(problem(error));
    shown = null;
    return;
  }
  if (mine !== turn || JSON.stringify(told) === shown) return;
  shown = JSON.stringify(told);
  const role = told.on_front ? "on the front" : !told.feasible && told.state === "complete" ? "infeasible" : told.state;
  place.replaceChildren(...[
    el("button", { class: "close", onclick: close, "aria-label": "Close the candidate" }, "×"),
    el("h2", {}, `Trial ${told.number}`, told.label ? el("span", { class: "quiet" }, ` ${told.label}`) : null),
    el("p", { class: "quiet" }, `${role}, ${number(told.seconds)} s, ${number(told.tokens)} tokens`),
    told.failure ? el("p", { class: "problem" }, told.failure) : null,
    told.figures.length ? figures(told) : null,
    told.nearest ? nearest(told.nearest) : null,
    told.commands.shell ? commands(told, at) : null,
    decisions(told.decisions),
  ].filter(Boolean));
}

function figures(told) {
  const where = ["search", "validation", "held-out"].filter((name) => told.figures.some((f) => name in f));
  const rows = told.figures.map((f) => [f.name + (f.unit ? ` in ${f.unit}` : ""), ...where.map((name) => number(f[name]))]);
  for (const c of told.constraints) {
    rows.push([`${c.name} (at most ${`${number(c.bound)} ${c.unit}`.trim()})${c.holds ? "" : ", broken"}`, number(c.value)]);
  }
  return table("Figures", ["", ...where], rows);
}

function nearest(told) {
  const rows = told.compared.map((each) => {
    const share = each.gain === null ? "–" : `${(100 * Math.abs(each.gain)).toFixed(1)}% ${each.gain >= 0 ? "better" : "worse"}`;
    return [each.name, number(each.own), number(each.theirs), each.gain === 0 ? "equal" : share];
  });
  return table(`Beside ${told.label}, the nearest baseline`, ["", "this", "baseline", ""], rows);
}

function commands({ number: trial, commands: told, exports }, at) {
  const choice = el("select", { id: "format" }, told.formats.map((name) => el("option", { value: name }, name)));
  const shell = el("code", {});
  const python = el("code", {});
  const fill = () => {
    shell.textContent = told.shell.replace("FORMAT", choice.value);
    python.textContent = told.python.replace("FORMAT", choice.value);
  };
  choice.addEventListener("change", fill);
  fill();
  return el(
    "div", { class: "commands" }, el("h3", {}, "Export it"),
    el("label", { for: "format" }, "Format "), choice,
    exports ? written(trial, choice, exports, at) : null,
    copied(shell, "command"), copied(python, "Python"),
    el("p", { class: "quiet" }, "STUDY is the file or the problem that the study was run with, with the options it had."),
  );
}

function written(trial, choice, into, at) {
  const name = el("input", { id: "folder", value: `trial-${trial}`, size: 18 });
  const said = el("div", { role: "status" });
  const button = el("button", {}, "Export");
  button.addEventListener("click", async () => {
    button.disabled = true;
    said.replaceChildren("Writing …");
    try {
      const body = JSON.stringify({ trial, format: choice.value, folder: name.value });
      const answer = await fetch(at("exports"), { method: "POST", body });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error);
      said.replaceChildren(el("p", {}, `Written to ${told.path}.`), ...told.serve.map((line) => el("p", {}, el("code", {}, line))), ...told.notes.map((line) => el("p", { class: "quiet" }, line)));
    } catch (error) {
      said.replaceChildren(problem(error));
    }
    button.disabled = false;
  });
  return el("div", { class: "write" }, el("p", { class: "copy" }, el("label", { for: "folder" }, `Into ${into}/`), name, button), said);
}

function copied(code, what) {
  const button = el("button", { onclick: async () => {
    await navigator.clipboard.writeText(code.textContent).then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Select it and copy"; });
  } }, `Copy the ${what}`);
  return el("p", { class: "copy" }, code, button);
}

function decisions(all) {
  const columns = [...new Set(all.map((each) => each.column))];
  const rows = [...new Set(all.map((each) => each.row))];
  if (columns.length < 2 || rows.length < 2) {
    return table("Decisions", ["decision", "value"], all.map((each) => [each.label || each.row, String(each.value)]));
  }
  const found = new Map(all.map((each) => [`${each.row}\0${each.column}`, each.value]));
  const grid = rows.map((row) => [row, ...columns.map((column) => String(found.get(`${row}\0${column}`) ?? ""))]);
  return table("Decisions", ["", ...columns], grid);
}
