/** What a list is asked for: the address holds the very parameters of REST, so that reload, back and a sent link keep them. Pure. */

import type { FilterType } from "../../data/kinds.ts";

export interface Filter {
  readonly field: string;
  readonly op: string;
  readonly value: string;
}

export interface Listing {
  readonly filters: readonly Filter[];
  /** A field, with "-" before it for the other way round; "" for the newest first. */
  readonly sort: string;
  readonly deleted: "" | "only" | "with";
  readonly cursor: string;
  /** Which page the cursor leads to, counted from 1. */
  readonly page: number;
}

export const PAGE_SIZE = 50;
const FILTER = /^filter\[([a-z0-9_]+)\](?:\[([a-z]+)\])?$/;

/** What the address says. Filters on fields that there are none of are left out. */
export function listingOf(query: URLSearchParams, filters: Readonly<Record<string, FilterType>>): Listing {
  const found: Filter[] = [];
  for (const [name, value] of query) {
    const match = FILTER.exec(name);
    const field = match?.[1] ?? "";
    if (match && field in filters && value !== "") found.push({ field, op: match[2] ?? "eq", value });
  }
  const deleted = query.get("deleted");
  const cursor = query.get("cursor") ?? "";
  return {
    filters: found,
    sort: query.get("sort") ?? "",
    deleted: deleted === "only" || deleted === "with" ? deleted : "",
    cursor,
    page: cursor === "" ? 1 : Math.max(2, Number.parseInt(query.get("page") ?? "2", 10) || 2),
  };
}

const nameOf = ({ field, op }: { readonly field: string; readonly op: string }): string => `filter[${field}][${op}]`;

/** Changes of the address's parameters: "" removes one. Another question begins at its first page. */
export function parametersOf(before: Listing, changed: Partial<Omit<Listing, "cursor" | "page">>): Record<string, string> {
  const said: Record<string, string> = { cursor: "", page: "" };
  if (changed.sort !== undefined) said.sort = changed.sort;
  if (changed.deleted !== undefined) said.deleted = changed.deleted;
  if (changed.filters !== undefined) {
    for (const filter of before.filters) {
      said[nameOf(filter)] = "";
      if (filter.op === "eq") said[`filter[${filter.field}]`] = "";
    }
    for (const filter of changed.filters) said[nameOf(filter)] = filter.value;
  }
  return said;
}

/** What the server is asked. */
export function questionOf({ filters, sort, deleted, cursor }: Listing): URLSearchParams {
  const asked = new URLSearchParams();
  for (const filter of filters) asked.append(nameOf(filter), filter.value);
  if (sort !== "") asked.set("sort", sort);
  if (deleted !== "") asked.set("deleted", deleted);
  asked.set("limit", String(PAGE_SIZE));
  if (cursor !== "") asked.set("cursor", cursor);
  return asked;
}

/** These filters with all on some fields (or one operator of it) put in the place of what was there. */
export function withFilter(filters: readonly Filter[], field: string, op: string, value: string): Filter[] {
  const others = filters.filter((one) => one.field !== field || one.op !== op);
  return value === "" ? others : [...others, { field, op, value }];
}

export const valueOf = (filters: readonly Filter[], field: string, op: string): string =>
  filters.find((one) => one.field === field && one.op === op)?.value ?? "";

/** The values that are chosen of a vocabulary. */
export const chosenOf = (filters: readonly Filter[], field: string): string[] =>
  filters.filter((one) => one.field === field && (one.op === "in" || one.op === "eq")).flatMap(({ value }) => value.split(","));

/** Without whatever is said of this field. */
export const withoutField = (filters: readonly Filter[], field: string): Filter[] => filters.filter((one) => one.field !== field);

/** The cursors of the pages that were walked through, kept for the tab: a server's page knows only the one after it. */
export class Trail {
  constructor(private readonly key: string) {}

  /** The cursor of a page; "" for the first one, undefined where it is not known. */
  cursorOf(page: number): string | undefined {
    return page <= 1 ? "" : this.read()[page];
  }

  keep(page: number, cursor: string): void {
    try {
      sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), [page]: cursor }));
    } catch {
      // storage may be forbidden: "previous" then leads to the first page
    }
  }

  private read(): Record<number, string> {
    try {
      return (JSON.parse(sessionStorage.getItem(this.key) ?? "{}") ?? {}) as Record<number, string>;
    } catch {
      return {}; // forbidden, or not ours
    }
  }
}
