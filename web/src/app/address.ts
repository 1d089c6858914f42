/** What an address says: which page, and what the frame's controls are set to. Pure. A default is not said. */

export type Place =
  | { readonly kind: "home" }
  | { readonly kind: "sign_in" }
  | { readonly kind: "gallery" }
  | { readonly kind: "page"; readonly org: string; readonly page: string }
  | ({ readonly kind: "documents"; readonly org: string; readonly view: View } & Collection)
  | { readonly kind: "nowhere" };

/** Where a kind of documents or facts has its pages: /orgs/{org}/{module}/{plural}. */
export interface Collection {
  readonly module: string;
  readonly plural: string;
}

/** What is shown of it: all of them (/), a form for a new one (/new), one (/ID), or its form (/ID/edit). */
export type View = { readonly of: "list" } | { readonly of: "new" } | { readonly of: "one" | "edit"; readonly id: string };

export function placeOf(path: string): Place {
  const [first, org, page, ...more] = path
    .split("/")
    .filter((part) => part !== "")
    .map(decode);
  if (first === undefined) return { kind: "home" };
  if (first === "sign-in" && org === undefined) return { kind: "sign_in" };
  if (first === "gallery" && org === undefined) return { kind: "gallery" };
  if (first === "orgs" && org !== undefined && more.length === 0) return { kind: "page", org, page: page ?? "" };
  const [plural, id, what, beyond] = more;
  if (first !== "orgs" || org === undefined || page === undefined || plural === undefined || beyond !== undefined)
    return { kind: "nowhere" };
  const collection = { kind: "documents", org, module: page, plural } as const;
  if (id === undefined) return { ...collection, view: { of: "list" } };
  if (what === undefined) return { ...collection, view: id === "new" ? { of: "new" } : { of: "one", id } };
  if (what === "edit") return { ...collection, view: { of: "edit", id } };
  return { kind: "nowhere" };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray % is part of a name that does not exist
  }
}

export const pagePath = (org: string, page: string): string => `/orgs/${encodeURIComponent(org)}/${page}`;

/** As names stand in addresses. */
const dashed = (name: string): string => encodeURIComponent(name.replaceAll("_", "-"));

/** `more`: "new", an id, or an id and "edit". */
export const documentsPath = (org: string, { module, plural }: Collection, ...more: string[]): string =>
  ["/orgs", encodeURIComponent(org), dashed(module), dashed(plural), ...more.map(encodeURIComponent)].join("/");

/** Whether an address's collection is this one. */
export const isAt = (at: Collection, { module, plural }: Collection): boolean =>
  at.module === dashed(module) && at.plural === dashed(plural);

export const RANGES = ["5m", "15m", "1h", "6h", "24h", "7d"] as const;
export type Range = (typeof RANGES)[number];

export interface Choices {
  readonly range: Range;
  /** An IANA zone, or "" for the browser's. */
  readonly zone: string;
  /** Empty: all. */
  readonly platforms: readonly string[];
  /** Part of a campaign's name. */
  readonly campaign: string;
  /** "" for the busiest. */
  readonly currency: string;
}

export const DEFAULT_RANGE: Range = "15m";

export function choicesOf(query: URLSearchParams): Choices {
  const zone = query.get("tz") ?? "";
  const currency = query.get("currency") ?? "";
  return {
    range: oneOf(RANGES, query.get("range"), DEFAULT_RANGE),
    zone: isZone(zone) ? zone : "",
    platforms: (query.get("platform") ?? "").split(",").filter((name) => name !== ""),
    campaign: query.get("q") ?? "",
    currency: /^[A-Z]{3}$/.test(currency) ? currency : "",
  };
}

/** The query's parameters that say these choices; "" where the default needs none. */
export function parametersOf(choices: Partial<Choices>): Record<string, string> {
  const said: Record<string, string> = {};
  if (choices.range !== undefined) said.range = choices.range === DEFAULT_RANGE ? "" : choices.range;
  if (choices.zone !== undefined) said.tz = choices.zone;
  if (choices.platforms !== undefined) said.platform = choices.platforms.join(",");
  if (choices.campaign !== undefined) said.q = choices.campaign;
  if (choices.currency !== undefined) said.currency = choices.currency;
  return said;
}

/** An address with some of its parameters changed; "" removes one. */
export function withParameters(search: string, parameters: Record<string, string>): string {
  const query = new URLSearchParams(search);
  for (const [name, value] of Object.entries(parameters)) {
    if (value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString().replaceAll("%2C", ",").replaceAll("%2F", "/").replaceAll("%5B", "[").replaceAll("%5D", "]");
  return text === "" ? "" : `?${text}`;
}

/** Where to go after signing in: a path of ours, never another site. */
export function ownPath(wanted: string | null): string {
  return wanted !== null && /^\/(?![/\\])/.test(wanted) && !wanted.startsWith("/sign-in") ? wanted : "/";
}

export function oneOf<T extends string>(values: readonly T[], value: string | null, fallback: T): T {
  return values.find((known) => known === value) ?? fallback;
}

function isZone(zone: string): boolean {
  try {
    return zone !== "" && new Intl.DateTimeFormat("en", { timeZone: zone }) !== undefined;
  } catch {
    return false; // Intl says by throwing that it does not know a zone
  }
}
