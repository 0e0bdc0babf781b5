// Plotly figures that know which trial each of their points stands for: what is selected is marked in all of them.

const PINK = "#d6297b";
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const drawn = new Map(); // place -> the figure as it was told
const loaded = load();
let shown = { trial: null, within: null }; // within: a set of trials, or null for all

async function load() {
  const script = new Promise((done, failed) => {
    document.head.append(Object.assign(document.createElement("script"), { src: "/plotly.js", onload: done, onerror: failed }));
  });
  const [templates] = await Promise.all([fetch("/templates.json").then((answer) => answer.json()), script]);
  return templates;
}

// A circle of 8 pixels around 0, 0: as its own kind of shape, plotly squashes it on logarithmic axes.
const CIRCLE = "M8,0C8,4.42 4.42,8 0,8C-4.42,8 -8,4.42 -8,0C-8,-4.42 -4.42,-8 0,-8C4.42,-8 8,-4.42 8,0Z";

function ring(axes, x, y) {
  return {
    type: "path", path: CIRCLE, ...axes, xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y,
    line: { color: PINK, width: 2.5 },
  };
}

function marks(figure, trial) {
  // Shapes over what stands for a trial: rings around its points, its line again, a frame around its column.
  const shapes = [];
  for (const trace of figure.data) {
    const [xref, yref] = [trace.xaxis ?? "x", trace.yaxis ?? "y"];
    const column = trace.meta?.columns?.indexOf(trial) ?? -1;
    if (column >= 0) {
      shapes.push({
        type: "rect", xref, yref: `${yref} domain`, x0: column - 0.5, x1: column + 0.5, y0: 0, y1: 1,
        line: { color: PINK, width: 2 },
      });
    }
    const numbers = trace.customdata;
    if (!Array.isArray(numbers) || trace.type === "scatter3d") continue;
    const places = numbers.flatMap((number, place) => (number === trial ? [place] : []));
    const points = places.map((place) => [trace.x ? trace.x[place] : place, trace.y[place]]).filter(([, y]) => y !== null);
    if (points.length > 1 && points.length === numbers.length) {
      shapes.push({ type: "path", xref, yref, path: `M${points.map((point) => point.join(",")).join("L")}`, line: { color: PINK, width: 3 } });
    }
    shapes.push(...points.map(([x, y]) => ring({ xref, yref }, x, y)));
  }
  return shapes;
}

function inSpace(figure) {
  // Traces that ring a trial in pictures in space, which have no shapes.
  return figure.data.flatMap((trace) => {
    const place = trace.type === "scatter3d" ? (trace.customdata?.indexOf(shown.trial) ?? -1) : -1;
    if (place < 0) return [];
    const marker = { symbol: "circle-open", size: 9, color: PINK, line: { width: 2.5 } };
    const [x, y, z] = ["x", "y", "z"].map((axis) => [trace[axis][place]]);
    return [{ x, y, z, type: "scatter3d", mode: "markers", hoverinfo: "skip", showlegend: false, marker }];
  });
}

function veils(figure, within) {
  // Shapes over the columns of what is not chosen.
  const ground = dark.matches ? "rgba(26,29,34,.82)" : "rgba(255,255,255,.82)";
  return figure.data.flatMap((trace) => {
    const columns = trace.meta?.columns ?? [];
    const [xref, yref] = [trace.xaxis ?? "x", `${trace.yaxis ?? "y"} domain`];
    return columns.flatMap((trial, at) =>
      within.has(trial) ? [] : [{ type: "rect", xref, yref, x0: at - 0.5, x1: at + 0.5, y0: 0, y1: 1, fillcolor: ground, line: { width: 0 } }],
    );
  });
}

function shapes(figure) {
  const { trial, within } = shown;
  return [...(figure.layout.shapes ?? []), ...(within ? veils(figure, within) : []), ...(trial === null ? [] : marks(figure, trial))];
}

function faded(figure) {
  // The data, what is not chosen faded in it.
  const { within } = shown;
  return figure.data.map((trace) => {
    const numbers = trace.customdata;
    if (!within || !Array.isArray(numbers) || trace.type === "scatter3d" || !String(trace.mode).includes("markers")) return trace;
    const line = numbers.length > 1 && numbers.every((number) => number === numbers[0]);
    if (line) return within.has(numbers[0]) ? trace : { ...trace, opacity: 0.06 };
    const opacity = numbers.map((number) => (within.has(number) ? (trace.marker?.opacity ?? 1) : 0.06));
    return { ...trace, marker: { ...trace.marker, opacity } };
  });
}

export async function draw(place, figure) {
  const templates = await loaded;
  drawn.set(place, figure);
  const layout = { ...structuredClone(figure.layout), template: templates[dark.matches ? "dark" : "light"], shapes: shapes(figure) };
  layout.uirevision = "kept";
  layout.selections = [];
  if (place.dataset.drag) layout.dragmode = place.dataset.drag;
  if (narrow.matches && layout.dragmode !== "select") layout.dragmode = false;
  await Plotly.react(place, [...faded(figure), ...inSpace(figure)], layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

export function listen(place, select, choose) {
  place.on("plotly_click", (event) => {
    const point = event.points[0];
    const columns = point.data.meta?.columns;
    const trial = columns ? columns[point.pointIndex?.[1] ?? point.x] : point.customdata;
    if (Number.isInteger(trial)) select(trial);
  });
  place.on("plotly_selected", (event) => event?.range && choose(drawn.get(place).layout.meta, event.range));
}

export function mark(trial) {
  shown = { ...shown, trial };
  for (const [place, figure] of here()) {
    if (figure.data.some((trace) => trace.type === "scatter3d")) draw(place, figure);
    else Plotly.relayout(place, { shapes: shapes(figure) });
  }
}

export function limit(within) {
  shown = { ...shown, within };
  for (const [place, figure] of here()) draw(place, figure);
}

function here() {
  for (const place of drawn.keys()) if (!place.isConnected) drawn.delete(place);
  return [...drawn];
}

dark.addEventListener("change", () => here().forEach(([place, figure]) => draw(place, figure)));
