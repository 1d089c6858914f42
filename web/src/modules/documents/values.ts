/** Values of documents in words. Pure. */

import type { Body, Item, Json } from "../../data/api.ts";
import { amount, bytes, decimal, duration, time, value as formatted } from "../../format.ts";
import { strings } from "../../strings.ts";
import { wordOf, type Field } from "./fields.ts";

export interface Context {
  readonly zone: string;
  /** Of the document that the value stands in. */
  readonly currency?: string;
  /** The name of a document that a reference points at; undefined until it is known. */
  readonly nameOf?: (kind: string, id: string) => string | undefined;
}

const NOTHING = strings.documents.nothing;
const LONGEST_LIST = 5;

/** `most`: of a list so many entries, then how many more there are. */
export function textOf(field: Field, value: Json | undefined, context: Context, most = Infinity): string {
  if (value === undefined || value === null || value === "") return NOTHING;
  switch (field.type) {
    case "bool":
      return value === true ? strings.documents.yes : strings.documents.no;
    case "time":
      return momentOf(value, context.zone);
    case "number":
      return typeof value === "number" ? numberOf(field, value, context) : String(value);
    case "choice":
      return wordOf(String(value));
    case "severity":
      return strings.severity[value as keyof typeof strings.severity] ?? String(value);
    case "ref":
      return context.nameOf?.(field.target, String(value)) ?? shortId(String(value));
    case "texts":
    case "numbers":
    case "choices":
    case "refs":
      return Array.isArray(value) ? listOf(field, value as readonly Json[], context, most) : String(value);
    case "json":
      return typeof value === "object" ? pretty(value, field.name) : String(value);
    default:
      return field.name === "platform" ? strings.platform(String(value)) : String(value);
  }
}

function listOf(field: Field, values: readonly Json[], context: Context, most: number): string {
  const words = values.map((one) => {
    if (field.type === "refs") return context.nameOf?.(field.target, String(one)) ?? shortId(String(one));
    if (field.type === "choices") return wordOf(String(one));
    return typeof one === "number" ? numberOf(field, one, context) : String(one);
  });
  if (words.length === 0) return NOTHING;
  const more = words.length > most ? ` ${strings.documents.more_items(words.length - most)}` : "";
  return words.slice(0, most).join(", ") + more;
}

function numberOf({ unit }: Field, value: number, { currency = "" }: Context): string {
  switch (unit) {
    case "micros":
      return currency === "" ? decimal(value / 1e6) : formatted(value, "money", { currency });
    case "ms":
      return value % 1000 === 0 ? duration(value) : `${amount(value)} ms`;
    case "s":
      return duration(value * 1000);
    case "bytes":
      return bytes(value);
    default:
      return amount(value);
  }
}

/** JSON for people: members that are null are left out, which means the same; not of what is kept as it is given. */
export function pretty(value: Json, name: string): string {
  const without = (_: string, inner: unknown) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).filter(([, one]) => one !== null))
      : inner;
  return JSON.stringify(value, name === "metadata" ? undefined : without, 2);
}

/** For a table's cell: structure as its size. */
export function shortTextOf(field: Field, value: Json | undefined, context: Context): string {
  if (field.type === "json" && typeof value === "object" && value !== null) {
    const size = Array.isArray(value) ? value.length : Object.keys(value).length;
    return size === 0 ? NOTHING : strings.documents.items(size);
  }
  return textOf(field, value, context, LONGEST_LIST);
}

export function momentOf(value: Json | undefined, zone: string): string {
  const at = typeof value === "number" ? value : Date.parse(String(value ?? ""));
  return Number.isFinite(at) ? time.moment(at, zone) : NOTHING;
}

/** Enough of a UUID to tell it from others at hand. */
export const shortId = (id: string): string => (/^[0-9a-f-]{36}$/.test(id) ? `…${id.slice(-8)}` : id);

/** What a document is called. */
export function nameOf(item: Item, field: string): string {
  const name = field === "" ? "" : item[field];
  return typeof name === "string" && name !== "" ? name : typeof name === "number" ? String(name) : shortId(item.id);
}

export const currencyOf = (body: Body): string => (typeof body.currency === "string" ? body.currency : "");

export const same = (one: Json | undefined, other: Json | undefined): boolean =>
  one === other || written(one ?? null) === written(other ?? null);

/** JSON with the members of objects in one order. */
function written(value: Json): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

/** The fields that differ. */
export function changedFields(before: Body, after: Body): string[] {
  return [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => !same(before[name], after[name]));
}
