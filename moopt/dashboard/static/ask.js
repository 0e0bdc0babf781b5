// What the server is asked.

import { patched } from "./patch.js";

export async function ask(address) {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    throw new Error("The dashboard does not answer. Is moopt dashboard still running?");
  }
  const told = await answer.json().catch(() => ({ error: `The dashboard answered ${answer.status}.` }));
  if (!answer.ok) throw new Error(told.error ?? `The dashboard answered ${answer.status}.`);
  return told;
}

export function following(address) {
  // Asks again and again for what changes, and is sent what is new of it: see patch.js.
  let [tag, held] = [null, null];
  return async () => {
    const told = await ask(tag === null ? address : `${address}&tag=${tag}`);
    if (told.whole) held = told.whole;
    else if (told.patch) held = patched(held, told.patch);
    tag = told.tag;
    return held;
  };
}
