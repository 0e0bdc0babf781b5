// Several studies in the same pictures.

import { ask } from "./ask.js";
import { fillIn, outline } from "./cards.js";
import { el, problem } from "./dom.js";

export async function showComparison(content, query) {
  document.title = "Comparison · moopt";
  const head = el("header", {}, el("p", { class: "kicker" }, el("a", { href: "/" }, "← All studies")), el("h1", {}, "Comparison"));
  const list = el("div", { class: "cards" });
  content.replaceChildren(head, list);
  try {
    const asked = new URLSearchParams(query.getAll("study").map((study) => ["study", study]));
    const { studies, cards } = await ask(`/api/compare?${asked}`);
    const named = studies.map(({ place, name }) => el("li", {}, el("a", { href: `/study?${new URLSearchParams({ place, study: name })}` }, name)));
    head.append(el("ul", { class: "findings" }, named));
    for (const [place, told] of cards.entries()) {
      const section = outline(`comparison-${place}`);
      list.append(section);
      await fillIn(section, told, {});
    }
  } catch (error) {
    list.replaceChildren(problem(error));
  }
}
