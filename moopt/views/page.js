const dark = matchMedia("(prefers-color-scheme: dark)");
const templates = JSON.parse(document.getElementById("templates").textContent);
const template = () => templates[dark.matches ? "dark" : "light"];
const places = document.querySelectorAll(".figure");
for (const place of places) {
  const figure = JSON.parse(place.firstElementChild.textContent);
  place.replaceChildren();
  figure.layout.template = template();
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
}
dark.addEventListener("change", () => places.forEach((place) => Plotly.relayout(place, { template: template() })));
