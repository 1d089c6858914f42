/** The fields of a kind as pages see them, from its JSON schema. Pure. */

import type { Json } from "../../data/api.ts";
import type { Kind } from "../../data/kinds.ts";
import type { Schema } from "../../data/schema.ts";
import { strings } from "../../strings.ts";
import { SEVERITIES } from "../../ui/severity.ts";

export type FieldType =
  | "text"
  | "long"
  | "number"
  | "bool"
  | "time"
  | "choice"
  | "severity"
  | "ref"
  | "texts"
  | "numbers"
  | "choices"
  | "refs"
  | "json";

/** What a number counts, by the end of its field's name. */
export type Unit = "" | "micros" | "ms" | "s" | "ratio" | "bytes";

export interface Field {
  readonly name: string;
  readonly label: string;
  readonly hint: string;
  readonly type: FieldType;
  readonly required: boolean;
  /** May be null, so that it can be left empty. */
  readonly nullable: boolean;
  readonly fallback: Json | undefined;
  /** Of a choice. */
  readonly options: readonly string[];
  /** Numbers without a fraction. */
  readonly whole: boolean;
  readonly unit: Unit;
  /** Kind that a reference points at. */
  readonly target: string;
}

const LONG_FROM = 240;
const LONG_NAMES = /^(description|notes?|text|body|message|comment|content|reason)$/;
const UNITS: readonly (readonly [RegExp, Unit])[] = [
  [/_micros$/, "micros"],
  [/_ms$/, "ms"],
  [/_s$/, "s"],
  [/_ratio$/, "ratio"],
  [/_bytes$/, "bytes"],
];

/** All fields of a schema, in its order. refs: field → kind that it points at. */
export function fieldsOf(schema: Schema, refs: Kind["refs"] = {}): Field[] {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, raw]) =>
    fieldOf(name, raw, schema, required.has(name), refs[name]?.target ?? ""),
  );
}

function fieldOf(name: string, raw: Schema, root: Schema, required: boolean, target: string): Field {
  const { schema, nullable } = plain(raw, root);
  const items = schema.items === undefined ? undefined : plain(schema.items, root).schema;
  const type = typeOf(name, schema, items, target, root);
  const of = type === "choices" ? items! : schema;
  return {
    name,
    label: labelOf(name),
    hint: (raw.description ?? schema.description ?? "").replace(/ ?Id of an? \w+\.$/, ""), // that is what the choice shows
    type,
    required,
    nullable,
    fallback: raw.default ?? schema.default,
    options: optionsOf(of, root) ?? [],
    whole: typesOf(of === schema && items ? items : of, root).every((one) => one === "integer"),
    unit: UNITS.find(([end]) => end.test(name))?.[1] ?? "",
    target,
  };
}

/** Without references and without null. */
function plain(schema: Schema, root: Schema): { schema: Schema; nullable: boolean } {
  const { $ref: reference } = schema;
  if (reference !== undefined) {
    const found = root.$defs?.[reference.replace("#/$defs/", "")];
    return found === undefined ? { schema: {}, nullable: false } : plain(found, root);
  }
  const ways = schema.anyOf ?? schema.oneOf;
  if (ways === undefined) return { schema, nullable: schema.type === "null" };
  const others = ways.filter((way) => way.type !== "null");
  const nullable = others.length < ways.length;
  if (others.length !== 1) return { schema, nullable };
  const only = plain(others[0]!, root);
  return { schema: only.schema, nullable: nullable || only.nullable };
}

function typeOf(name: string, schema: Schema, items: Schema | undefined, target: string, root: Schema): FieldType {
  const options = optionsOf(schema, root);
  if (options) return options.every(isSeverity) ? "severity" : "choice";
  const types = typesOf(schema, root);
  if (types.length === 1 && types[0] === "array" && items !== undefined) {
    if (optionsOf(items, root)) return "choices";
    const inside = typesOf(items, root);
    if (inside.length === 0) return "json";
    if (inside.every((one) => one === "string")) return target ? "refs" : "texts";
    return inside.every(isNumber) ? "numbers" : "json";
  }
  if (types.length === 0) return "json";
  if (types.every(isNumber)) return "number";
  if (types.length > 1) return "json";
  if (types[0] === "boolean") return "bool";
  if (types[0] !== "string") return "json";
  if (schema.format === "date-time") return "time";
  if (target) return "ref";
  return (schema.maxLength ?? 0) >= LONG_FROM || LONG_NAMES.test(name) ? "long" : "text";
}

const isNumber = (type: string) => type === "number" || type === "integer";
const isSeverity = (text: string) => (SEVERITIES as readonly string[]).includes(text);

/** The JSON types that a schema lets through, null left out; none where it cannot be told. */
function typesOf(schema: Schema, root: Schema): string[] {
  const ways = schema.anyOf ?? schema.oneOf;
  if (ways) {
    const parts = ways.map((way) => typesOf(plain(way, root).schema, root));
    if (parts.some((part, place) => part.length === 0 && ways[place]?.type !== "null")) return [];
    return [...new Set(parts.flat())];
  }
  const types = typeof schema.type === "string" ? [schema.type] : [...(schema.type ?? [])];
  return types.filter((type) => type !== "null");
}

/** The vocabulary of a text. */
function optionsOf(schema: Schema, root: Schema): string[] | undefined {
  const values = schema.enum ?? (schema.const === undefined ? undefined : [schema.const]);
  if (values) return values.every((value) => typeof value === "string") ? [...values] : undefined;
  const ways = schema.anyOf ?? schema.oneOf;
  if (!ways) return undefined;
  const parts = ways.map((way) => optionsOf(plain(way, root).schema, root));
  return parts.every((part) => part !== undefined) ? parts.flat() : undefined;
}

const ABBREVIATIONS: Record<string, string> = {
  id: "ID",
  url: "URL",
  cpc: "CPC",
  cpm: "CPM",
  cpa: "CPA",
  ctr: "CTR",
  cvr: "CVR",
  roas: "ROAS",
  utm: "UTM",
  api: "API",
};

const OWN_LABELS: Record<string, string> = {
  created_at: strings.documents.created,
  updated_at: strings.documents.updated,
  at: strings.documents.updated,
};

/** "price_micros" is "Price", "made_at" is "Made": units and kinds of values show in the values. */
export function labelOf(name: string): string {
  if (name in OWN_LABELS) return OWN_LABELS[name]!;
  const words = name.replace(/(?!^)(_micros|_ms|_s|_at|_ids?|_ratio|_bytes)$/, "").split("_");
  const text = words.map((word) => ABBREVIATIONS[word] ?? word).join(" ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A word of a vocabulary for people. */
export function wordOf(option: string): string {
  const text = option.replaceAll("_", " ");
  return ABBREVIATIONS[option] ?? (text.charAt(0).toUpperCase() + text.slice(1) || option);
}

const NAMES = ["name", "title", "label", "subject", "handle"];
/** Texts for machines, which nobody is called by. */
export const KEYS: ReadonlySet<string> = new Set(["key", "slug", "entity"]);

/** The field whose value a document is called by; "" where it has none. */
export function nameField(kind: Kind): string {
  const properties = kind.read_schema.properties ?? {};
  const named = NAMES.find((name) => name in properties) ?? kind.natural_key;
  if (named) return named;
  const texts = fieldsOf(kind.read_schema, kind.refs).filter(({ type }) => type === "text" || type === "long");
  const found = texts.find(({ name }) => kind.filters[name] === "text" && !COMMON.has(name) && !KEYS.has(name));
  return found?.name ?? "";
}

/** What every document has. */
export const COMMON: ReadonlySet<string> = new Set([
  "id",
  "version",
  "created_at",
  "updated_at",
  "deleted_at",
  "tags",
  "metadata",
  "owner_id",
  "visibility",
  "at",
]);
