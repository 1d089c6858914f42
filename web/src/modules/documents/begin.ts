/** What a new document begins with: nothing, a template, or another document. Pure. */

import type { Body } from "../../data/api.ts";
import type { Kind } from "../../data/kinds.ts";

/** In the metadata of what a file manages; a copy is not managed by it. */
const APPLIED_FROM = "applied_from";

/** The template that an address names, by its name; "" for none. */
export function templateIn(query: URLSearchParams, kind: Kind): string {
  const wanted = query.get("template");
  return kind.templates.find(({ name }) => name === wanted)?.name ?? "";
}

export const templateBody = (kind: Kind, wanted: string): Body => kind.templates.find(({ name }) => name === wanted)?.body ?? {};

/** What a copy of a document has of it, as `clone` of REST says: without what has to differ and what every new one begins with. */
export function copyOf(kind: Kind, source: Body): Body {
  const without = new Set([...differing(kind), kind.states?.field, "visibility"]);
  const kept = Object.keys(kind.schema?.properties ?? {}).filter((name) => name in source && !without.has(name));
  return Object.fromEntries(kept.map((name) => [name, name === "metadata" ? unmanaged(source.metadata as Body) : source[name]!]));
}

/** Of several fields that are unique together a reference stays: the copy belongs to the same. */
function differing({ unique, refs }: Kind): string[] {
  return unique.flatMap((together) => {
    const own = together.filter((name) => !(name in refs));
    return own.length > 0 ? own : [...together];
  });
}

const unmanaged = (metadata: Body): Body =>
  Object.fromEntries(Object.entries(metadata).filter(([name]) => name !== APPLIED_FROM));
