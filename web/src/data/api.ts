/** REST: one way to call it, what can go wrong as two errors, and the calls that the page makes. */

import { strings } from "../strings.ts";
import type { Kind } from "./kinds.ts";
import type { GatewayToken, IncidentList, PanesQuery, QueryResult, Session } from "./contract.ts";

/** What is wrong with one part of a request. */
export interface FieldError {
  /** JSON pointer into the body. */
  readonly pointer?: string;
  readonly code?: string;
  readonly got?: string;
  readonly expected?: string;
}

/** The server's answer that something cannot be done: an RFC 9457 problem document. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    /** Of the published enumeration: the last part of `type`. */
    readonly code: string,
    readonly title: string,
    readonly detail: string,
    readonly requestId: string,
    readonly errors: readonly FieldError[] = [],
  ) {
    super(detail || title);
  }
}

/** No answer at all. */
export class Unreachable extends Error {
  constructor() {
    super(strings.errors.unreachable);
  }
}

type Listener = () => void;
const refused = new Set<Listener>();

/** Calls back when the server no longer knows who we are. Returns how to stop that. */
export function onSignedOut(listener: Listener): () => void {
  refused.add(listener);
  return () => refused.delete(listener);
}

const LONGEST_MS = 20_000;

interface More {
  /** If-Match. */
  readonly etag?: string;
}

interface Answer<T> {
  readonly body: T;
  readonly etag: string;
}

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  return (await ask<T>(method, path, body)).body;
}

async function ask<T>(method: string, path: string, body?: unknown, { etag = "" }: More = {}): Promise<Answer<T>> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: {
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(etag === "" ? {} : { "If-Match": etag }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(LONGEST_MS),
    });
  } catch {
    throw new Unreachable(); // fetch rejects for nothing else than the network and the time limit
  }
  if (response.ok)
    return {
      body: (response.status === 204 ? undefined : await json(response)) as T,
      etag: response.headers.get("etag") ?? "",
    };
  const told = (await json(response).catch(() => ({}))) as Record<string, unknown>;
  const text = (name: string) => (typeof told[name] === "string" ? told[name] : "");
  const code = text("type").split("/").at(-1) ?? "";
  const problem = new Problem(
    response.status,
    code,
    text("title") || strings.errors.status(response.status),
    text("detail"),
    text("request_id"),
    Array.isArray(told.errors) ? (told.errors as FieldError[]) : [],
  );
  if (problem.status === 401) for (const listener of refused) listener();
  throw problem;
}

async function json(response: Response): Promise<unknown> {
  try {
    return await response.json();
  } catch {
    throw new Problem(response.status, "", strings.errors.notJson, "", response.headers.get("request-id") ?? "");
  }
}

const orgPath = (org: string) => `/api/orgs/${encodeURIComponent(org)}`;

export const api = {
  session: () => call<Session>("GET", "/api/session"),
  signIn: (code: string) => call<Session>("POST", "/api/session", { code }),
  signOut: () => call<void>("DELETE", "/api/session"),
  gatewayToken: () => call<GatewayToken>("POST", "/api/session/gateway-token", {}),
  query: (org: string, query: PanesQuery) => call<QueryResult>("POST", `${orgPath(org)}/query`, query),
  incidents: (org: string, state: "firing" | "resolved", limit: number) =>
    call<IncidentList>("GET", `${orgPath(org)}/alerts/history?filter[state]=${state}&limit=${limit}`),
  kinds: (org: string) => call<{ readonly items: readonly Kind[] }>("GET", `${orgPath(org)}/kinds`),
};

/** REST of one kind of an org. Paths that end in a word: commands, and what comes with them. */
export class Collection {
  private readonly path: string;

  constructor(org: string, path: string) {
    this.path = `${orgPath(org)}/${path}`;
  }

  list(parameters: URLSearchParams): Promise<Page> {
    return call("GET", `${this.path}?${parameters}`);
  }

  get(id: string): Promise<Answer<Item>> {
    return ask("GET", this.one(id));
  }

  /** Also a deleted one. */
  getAny(id: string): Promise<Answer<Item>> {
    return ask("GET", `${this.one(id)}?deleted=with`);
  }

  create(body: Body): Promise<Answer<Item>> {
    return ask("POST", this.path, body);
  }

  replace(id: string, body: Body, etag: string): Promise<Answer<Item>> {
    return ask("PUT", this.one(id), body, { etag });
  }

  delete(id: string, etag: string): Promise<Answer<void>> {
    return ask("DELETE", this.one(id), undefined, { etag });
  }

  restore(id: string): Promise<Answer<Item>> {
    return ask("POST", `${this.one(id)}/restore`);
  }

  bulk(items: readonly BulkItem[]): Promise<{ readonly results: readonly BulkResult[] }> {
    return call("POST", `${this.path}/bulk`, { items });
  }

  /** id undefined: a command on the collection. A command on a fact whose result takes longer answers without an item. */
  command(name: string, id: string | undefined, body: Body | undefined): Promise<{ readonly item?: Item | null }> {
    const where = id === undefined ? this.path : this.one(id);
    return call("POST", `${where}/${name.replaceAll("_", "-")}`, body);
  }

  changes(id: string, limit: number, cursor?: string): Promise<Changes> {
    const more = cursor === undefined ? "" : `&cursor=${encodeURIComponent(cursor)}`;
    return call("GET", `${this.one(id)}/changes?limit=${limit}${more}`);
  }

  private one(id: string): string {
    return `${this.path}/${encodeURIComponent(id)}`;
  }
}

export type Json = string | number | boolean | null | readonly Json[] | { readonly [name: string]: Json };
export type Body = Readonly<Record<string, Json>>;

/** A document or a fact as it is read. */
export type Item = Body & { readonly id: string; readonly version: number };

export interface Page {
  readonly items: readonly Item[];
  readonly next: string | null;
  readonly total_estimate: number;
}

export interface BulkItem {
  readonly op: string;
  readonly id: string;
  readonly version?: number;
}

export interface BulkResult {
  readonly index: number;
  readonly id: string | null;
  readonly status: number;
  readonly problem?: { readonly title: string; readonly detail: string };
}

export interface Change {
  readonly seq: number;
  readonly version: number;
  readonly command: string;
  readonly actor: string;
  readonly at: string;
  readonly before: Body | null;
  readonly after: Body | null;
}

export interface Changes {
  readonly items: readonly Change[];
  readonly next: string | null;
  readonly total_estimate: number;
}
