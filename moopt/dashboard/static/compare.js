// Several studies in the same pictures, live while they run.

import { ask } from "./ask.js";
import { fillIn, outline } from "./cards.js";
import { el, problem } from "./dom.js";

const EVERY = 2000; // milliseconds from one look to the next

export async function showComparison(content, query) {
  document.title = "Comparison · moopt";
  const [names, trouble, list] = [el("ul", { class: "findings" }), el("div", { class: "trouble" }), el("div", { class: "cards" })];
  const head = el("header", {}, el("p", { class: "kicker" }, el("a", { href: "/" }, "← All studies")), el("h1", {}, "Comparison"), names);
  content.replaceChildren(head, trouble, list);
  const asked = query.getAll("study").map((study) => ["study", study]);
  let known = "";

  async function refresh() {
    try {
      const { mark, studies, cards } = await ask(`/api/compare?${new URLSearchParams([...asked, ["mark", known]])}`);
      if (mark !== known) await show(studies, cards);
      known = mark;
      trouble.replaceChildren();
    } catch (error) {
      trouble.replaceChildren(problem(error));
    }
    if (known) setTimeout(refresh, EVERY); // what could not be compared at first cannot be later
  }

  async function show(studies, cards) {
    const address = ({ place, name }) => `/study?${new URLSearchParams({ place, study: name })}`;
    names.replaceChildren(...studies.map((study) => el("li", {}, el("a", { href: address(study) }, study.name))));
    for (const [place, told] of cards.entries()) {
      if (place === list.children.length) list.append(outline(`comparison-${place}`));
      await fillIn(list.children[place], told, {});
    }
  }

  await refresh();
}
