// Plotly figures that know which trial each of their points stands for: what is selected is marked in all of them.

const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const drawn = new Map(); // place -> the figure as it was told
let templates = null;

export async function prepare() {
  templates ??= await (await fetch("/templates.json")).json();
}

function marks(figure, trial) {
  // Traces and shapes that show a trial: rings around its points, its line again, a frame around its column.
  const traces = [];
  const shapes = [];
  for (const trace of figure.data) {
    const axes = { xaxis: trace.xaxis ?? "x", yaxis: trace.yaxis ?? "y" };
    const column = trace.meta?.columns?.indexOf(trial) ?? -1;
    if (column >= 0) {
      shapes.push({
        type: "rect", xref: axes.xaxis, yref: `${axes.yaxis} domain`, x0: column - 0.5, x1: column + 0.5, y0: 0, y1: 1,
        line: { color: "#d6297b", width: 2 },
      });
    }
    const numbers = trace.customdata;
    if (!Array.isArray(numbers)) continue;
    const places = numbers.flatMap((number, place) => (number === trial ? [place] : []));
    if (!places.length) continue;
    const whole = places.length > 1 && places.length === numbers.length;
    const x = places.map((place) => (trace.x ? trace.x[place] : place));
    const y = places.map((place) => trace.y[place]);
    traces.push({
      x, y, ...axes, type: "scatter", mode: whole ? "lines+markers" : "markers", hoverinfo: "skip", showlegend: false,
      line: { color: "#d6297b", width: 3 },
      marker: { symbol: "circle-open", size: 16, color: "#d6297b", line: { width: 2.5 } },
    });
  }
  return { traces, shapes };
}

export function draw(place, figure, trial) {
  drawn.set(place, figure);
  const { traces, shapes } = marks(figure, trial);
  const layout = { ...figure.layout, template: templates[dark.matches ? "dark" : "light"] };
  layout.shapes = [...(figure.layout.shapes ?? []), ...shapes];
  layout.uirevision = "kept";
  if (narrow.matches) layout.dragmode = false;
  const settings = { responsive: true, displaylogo: false, displayModeBar: false };
  return Plotly.react(place, [...figure.data, ...traces], layout, settings);
}

export function listen(place, select) {
  place.on("plotly_click", (event) => {
    const point = event.points[0];
    const columns = point.data.meta?.columns;
    const trial = columns ? columns[point.pointIndex?.[1] ?? point.x] : point.customdata;
    if (Number.isInteger(trial)) select(trial);
  });
}

export function mark(trial) {
  for (const [place, figure] of drawn) if (place.isConnected) draw(place, figure, trial);
}

export function forget() {
  for (const place of drawn.keys()) if (!place.isConnected) drawn.delete(place);
}

dark.addEventListener("change", () => {
  for (const [place] of drawn) {
    if (place.isConnected) Plotly.relayout(place, { template: templates[dark.matches ? "dark" : "light"] });
  }
});
