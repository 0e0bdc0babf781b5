// The list of studies, each with the outline of its front.

import { ask } from "./ask.js";
import { el, number, problem, svg } from "./dom.js";

export async function showList(content) {
  document.title = "Studies · moopt";
  let [studies, optuna] = [];
  try {
    ({ studies, optuna } = await ask("/api/studies"));
  } catch (error) {
    content.replaceChildren(el("h1", {}, "Studies"), problem(error));
    return;
  }
  const cards = studies.map((study) => (study.error ? broken(study) : study.reading ? awaited(study) : link(study)));
  const none = el("p", { class: "quiet" }, "There is no study yet: moopt run keeps one in a file, which is shown here.");
  const list = el("ul", { class: "studies" }, cards);
  const header = el("header", {}, el("p", { class: "kicker" }, "moopt"), el("h1", {}, "Studies"));
  const two = studies.filter((study) => study.outline).length > 1;
  content.replaceChildren(header, ...(two ? [comparing(list)] : []), cards.length ? list : none, ...(optuna ? [beside(studies)] : []));
  if (studies.some((study) => study.reading)) setTimeout(() => showList(content), 300);
}

function comparing(list) {
  // What leads to the comparison of the studies that are ticked.
  const button = el("button", { disabled: true }, "Compare");
  const said = el("span", { class: "quiet" }, "Tick two or more studies to see their fronts in one picture.");
  const ticked = () => [...list.querySelectorAll("input:checked")].map((box) => ["study", box.value]);
  list.addEventListener("change", () => {
    button.disabled = ticked().length < 2;
    button.textContent = ticked().length < 2 ? "Compare" : `Compare ${ticked().length} studies`;
  });
  button.addEventListener("click", () => location.assign(`/compare?${new URLSearchParams(ticked())}`));
  return el("p", { class: "comparing" }, button, said);
}

function beside(studies) {
  // Where optuna-dashboard shows the same storages.
  const places = new Map(studies.filter((study) => study.outline).map((study) => [study.place, study.storage]));
  const links = [...places].map(([place, storage]) => el("li", {}, el("a", { href: `/optuna/${place}/dashboard` }, storage)));
  return places.size ? el("footer", {}, "In optuna-dashboard, to look at:", el("ul", { class: "beside" }, links)) : "";
}

function awaited(study) {
  return el("li", { class: "study" }, el("h2", {}, study.storage), el("p", { class: "quiet", role: "status" }, "Reading …"));
}

function broken(study) {
  return el("li", { class: "study" }, el("h2", {}, study.name ?? study.storage), problem(new Error(study.error)));
}

function link(study) {
  const address = `/study?${new URLSearchParams({ place: study.place, study: study.name })}`;
  const state = study.running ? "running" : study.running === null ? "perhaps running elsewhere" : "at rest";
  const failed = study.failed ? `, ${number(study.failed)} failed` : "";
  return el(
    "li", { class: "study" },
    el("a", { href: address }, outline(study), el("h2", {}, study.name)),
    el("p", {}, `${number(study.complete)} of ${number(study.trials)} trials complete${failed}; ${number(study.front)} on the front`),
    el("p", { class: "quiet" }, [study.objectives.join(" · "), study.algorithm].filter(Boolean).join(" — ")),
    el("p", { class: study.running ? "state live" : "state" }, state),
    el("label", { class: "tick" }, el("input", { type: "checkbox", value: `${study.place}:${study.name}` }), " compare"),
  );
}

function outline(study) {
  // A sketch of the front: no axes, the first objective to the right, the second upwards.
  const [width, height, edge] = [220, 96, 8];
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "outline", role: "img" });
  drawing.append(svg("title", {}, study.outline.length ? `The front of ${study.name}` : "No front yet"));
  const points = study.outline.map(([x, y], place) => (y === undefined ? [place, x] : [x, y]));
  if (!points.length) return drawing;
  const span = [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const at = (value, axis, length) => {
    const [low, high] = span[axis];
    return edge + ((high > low ? (value - low) / (high - low) : 0.5) * (length - 2 * edge));
  };
  const places = points.map(([x, y]) => [at(x, 0, width), height - at(y, 1, height)]);
  drawing.append(svg("polyline", { points: places.map((place) => place.join(",")).join(" ") }));
  for (const [x, y] of places) drawing.append(svg("circle", { cx: x, cy: y, r: 2.5 }));
  return drawing;
}
