/** Which fields of a kind a list has as columns, in their order. Pure. */

import type { Item } from "../../data/api.ts";
import type { Kind } from "../../data/kinds.ts";
import { fieldsOf, KEYS, nameField, type Field, type FieldType } from "./fields.ts";

const RANKS: Record<FieldType, number> = {
  severity: 2,
  choice: 3,
  bool: 4,
  ref: 5,
  refs: 6,
  text: 7,
  choices: 8,
  texts: 8,
  long: 9,
  number: 10,
  numbers: 11,
  time: 12,
  json: 13,
};
/** Shown last, whatever else there is. */
const LAST = ["visibility", "tags", "created_at", "updated_at", "at"];
const EXTRA: ReadonlySet<string> = new Set(["created_at", "owner_id", "at"]);
const LONGEST = 7;

export interface ListField {
  readonly field: Field;
  /** What its row is called by; undefined field where a kind has none, then it is the id. */
  readonly isName: boolean;
  readonly isState: boolean;
  readonly sortable: boolean;
  /** Not shown until it is chosen. */
  readonly extra: boolean;
}

/** items: what is in sight; a column without any value in it is left out. */
export function listFields(kind: Kind, items: readonly Item[]): ListField[] {
  const named = nameField(kind);
  const byName = new Map(fieldsOf(kind.read_schema, kind.refs).map((field) => [field.name, field]));
  const wanted = new Set([named, ...Object.keys(kind.filters), ...kind.sorts, "created_at", "updated_at"]);
  wanted.delete("id");
  if (byName.has(kind.states?.field ?? "")) wanted.add(kind.states!.field);
  const rank = (field: Field): number =>
    field.name === named
      ? 0
      : isState(kind, field)
        ? 1
        : LAST.includes(field.name)
          ? 100 + LAST.indexOf(field.name)
          : RANKS[field.type];
  const fields = [...wanted].flatMap((name) => byName.get(name) ?? []).sort((a, b) => rank(a) - rank(b));
  const empty = (name: string) => items.length > 0 && items.every((item) => isNothing(item[name]));
  return fields.map((field, place) => ({
    field,
    isName: field.name === named,
    isState: isState(kind, field),
    sortable: kind.sorts.includes(field.name),
    extra:
      field.name !== named &&
      (EXTRA.has(field.name) || empty(field.name) || (place > LONGEST && field.name !== "updated_at") || KEYS.has(field.name)),
  }));
}

/** Facts declare no states, but many have one. */
export const isState = (kind: Kind, { name, type }: Field): boolean =>
  name === kind.states?.field || (type === "choice" && (name === "state" || name === "status"));

const isNothing = (value: unknown): boolean =>
  value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0);
