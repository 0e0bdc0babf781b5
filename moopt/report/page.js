const dark = matchMedia("(prefers-color-scheme: dark)");
const templates = JSON.parse(document.getElementById("templates").textContent);
const template = () => templates[dark.matches ? "dark" : "light"];
const places = [...document.querySelectorAll(".figure")];
const undrawn = [...places];
const draw = (place) => {
  const figure = JSON.parse(place.firstElementChild.textContent);
  place.replaceChildren();
  figure.layout.template = template();
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
};
const drawNext = () => {
  if (!undrawn.length) return;
  draw(undrawn.shift());
  setTimeout(drawNext); // what is drawn is seen before the next one is
};
drawNext();
const drawn = () => places.filter((place) => !undrawn.includes(place));
dark.addEventListener("change", () => drawn().forEach((place) => Plotly.relayout(place, { template: template() })));

// On paper everything is open, light, and no larger than a page.
const PAGE = { width: 680, height: 800 };
const closed = () => [...document.querySelectorAll("details:not(.wide):not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  undrawn.splice(0).forEach(draw);
  opened = closed();
  opened.forEach((each) => (each.open = true));
  for (const place of places) {
    place.dataset.height = place.style.height;
    const height = Math.min(parseInt(place.style.height), PAGE.height);
    place.style.height = `${height}px`;
    Plotly.relayout(place, { template: templates.light, width: PAGE.width, height });
  }
});
addEventListener("afterprint", () => {
  opened.forEach((each) => (each.open = false));
  for (const place of places) {
    place.style.height = place.dataset.height;
    Plotly.relayout(place, { template: template(), width: null, height: parseInt(place.style.height), autosize: true });
  }
});
