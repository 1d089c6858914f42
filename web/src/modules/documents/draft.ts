/** A form's values while they are typed, and the body that they make. Pure. */

import type { Body, FieldError, Json } from "../../data/api.ts";
import { fromLocal, toLocal } from "../../format.ts";
import { strings } from "../../strings.ts";
import type { Field } from "./fields.ts";
import { pretty, same } from "./values.ts";

/** Texts as they are typed; lists as lists of texts. */
export type Raw = string | boolean | readonly string[];
export type Draft = Readonly<Record<string, Raw>>;
/** Field → what is wrong with it; "" for the whole. */
export type Errors = Readonly<Record<string, readonly string[]>>;

export function draftOf(fields: readonly Field[], body: Body, zone: string): Draft {
  return Object.fromEntries(fields.map((field) => [field.name, rawOf(field, body[field.name] ?? field.fallback, zone)]));
}

export function rawOf(field: Field, value: Json | undefined, zone: string): Raw {
  const none = value === undefined || value === null;
  switch (field.type) {
    case "bool":
      return field.nullable || (field.required && none) ? (none ? "" : String(value)) : value === true;
    case "texts":
    case "numbers":
    case "choices":
    case "refs":
      return Array.isArray(value) ? value.map(String) : [];
    case "time":
      return none ? "" : toLocal(typeof value === "number" ? value : Date.parse(String(value)), zone);
    case "json":
      return none ? "" : pretty(value, field.name);
    default:
      return none ? "" : String(value);
  }
}

/** The body that a draft means. before: what it was made from, so that what was not touched stays exactly as it was. */
export function bodyOf(fields: readonly Field[], draft: Draft, before: Draft, base: Body, zone: string): [Body, Errors] {
  const body: Record<string, Json> = {};
  const errors: Record<string, string[]> = {};
  for (const field of fields) {
    const raw = draft[field.name] ?? "";
    if (field.name in base && sameRaw(raw, before[field.name] ?? "")) {
      body[field.name] = base[field.name]!;
      continue;
    }
    try {
      const value = valueOf(field, raw, zone);
      if (value !== undefined) body[field.name] = value;
    } catch (error) {
      if (!(error instanceof NotValid)) throw error;
      errors[field.name] = [error.message];
    }
  }
  return [body, errors];
}

export const sameRaw = (one: Raw, other: Raw): boolean => same(one as Json, other as Json);

class NotValid extends Error {}

/** undefined: left out, for its default. */
function valueOf(field: Field, raw: Raw, zone: string): Json | undefined {
  if (typeof raw === "boolean") return raw;
  if (typeof raw !== "string") {
    if (field.type === "numbers") return raw.map((one) => numberOf(one, field.whole));
    return [...raw];
  }
  const text = field.type === "text" || field.type === "long" ? raw : raw.trim();
  if (text === "") {
    if (field.required && !(field.nullable && field.type !== "text")) throw new NotValid(strings.form.missing);
    if (field.nullable) return null;
    return field.type === "text" || field.type === "long" ? (field.fallback === undefined ? undefined : "") : undefined;
  }
  switch (field.type) {
    case "number":
      return numberOf(text, field.whole);
    case "bool":
      return text === "true";
    case "time": {
      const at = fromLocal(text, zone);
      if (at === undefined) throw new NotValid(strings.form.notTime);
      return new Date(at).toISOString();
    }
    case "json":
      try {
        return JSON.parse(text) as Json;
      } catch (error) {
        throw new NotValid(strings.form.notJson((error as Error).message));
      }
    default:
      return text;
  }
}

function numberOf(text: string, whole: boolean): number {
  const number = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text.trim()) ? Number(text) : Number.NaN;
  if (!Number.isFinite(number)) throw new NotValid(strings.form.notNumber);
  if (whole && !Number.isInteger(number)) throw new NotValid(strings.form.notWhole);
  return number;
}

/** Where a problem's errors belong. What is about no field that is shown stands under "". */
export function errorsOf(errors: readonly FieldError[], fields: readonly Field[]): Errors {
  const placed: Record<string, string[]> = {};
  for (const error of errors) {
    const [, name = "", ...rest] = (error.pointer ?? "").split("/").map(unescaped);
    const known = fields.some((field) => field.name === name);
    const where = rest.length > 0 ? `${rest.join(" › ")}: ` : "";
    const said = error.expected ? strings.form.expected(error.expected) : (error.code ?? "");
    (placed[known ? name : ""] ??= []).push(known ? where + said : [error.pointer, said].filter(Boolean).join(": "));
  }
  return placed;
}

const unescaped = (part: string): string => part.replaceAll("~1", "/").replaceAll("~0", "~");

export interface Conflict {
  readonly field: Field;
  readonly base: Json | undefined;
  readonly theirs: Json | undefined;
  readonly mine: Json | undefined;
  readonly both: boolean;
  /** Not changed here. */
  readonly untouched: boolean;
}

/** What somebody else changed since `base`, beside what `mine` says. */
export function conflictsOf(fields: readonly Field[], base: Body, theirs: Body, mine: Body): Conflict[] {
  return fields
    .filter(({ name }) => !same(base[name], theirs[name]))
    .map((field) => {
      const [before, now, own] = [base[field.name], theirs[field.name], mine[field.name]];
      return {
        field,
        base: before,
        theirs: now,
        mine: own,
        both: !same(before, own) && !same(now, own),
        untouched: same(before, own),
      };
    });
}

/** Theirs, with what was changed here on top. */
export function rebased(fields: readonly Field[], draft: Draft, before: Draft, theirs: Draft): Draft {
  return Object.fromEntries(
    fields.map(({ name }) => {
      const [own, was] = [draft[name] ?? "", before[name] ?? ""];
      return [name, sameRaw(own, was) ? (theirs[name] ?? "") : own];
    }),
  );
}
