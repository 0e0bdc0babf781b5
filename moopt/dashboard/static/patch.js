// Applies what moopt/dashboard/patches.py finds: the new value out of the old one, which stays as it is.

export function patched(old, patch) {
  if ("set" in patch) return patch.set;
  if (patch.runs) return patch.runs.flatMap((run) => (Array.isArray(run) ? old.slice(run[0], run[0] + run[1]) : run.items));
  const made = Array.isArray(old) ? [...old] : { ...old };
  for (const [key, change] of patch.each ?? Object.entries(patch.keys)) made[key] = patched(old[key], change);
  for (const key of patch.gone ?? []) delete made[key];
  return made;
}
