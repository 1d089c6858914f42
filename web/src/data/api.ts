/** REST: one way to call it, what can go wrong as two errors, and the calls that the page makes. */

import { strings } from "../strings.ts";
import type { GatewayToken, IncidentList, PanesQuery, QueryResult, Session } from "./contract.ts";

/** The server's answer that something cannot be done: an RFC 9457 problem document. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    /** Of the published enumeration: the last part of `type`. */
    readonly code: string,
    readonly title: string,
    readonly detail: string,
    readonly requestId: string,
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

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(LONGEST_MS),
    });
  } catch {
    throw new Unreachable(); // fetch rejects for nothing else than the network and the time limit
  }
  if (response.ok) return (response.status === 204 ? undefined : await json(response)) as T;
  const told = (await json(response).catch(() => ({}))) as Record<string, unknown>;
  const text = (name: string) => (typeof told[name] === "string" ? told[name] : "");
  const code = text("type").split("/").at(-1) ?? "";
  const problem = new Problem(
    response.status,
    code,
    text("title") || strings.errors.status(response.status),
    text("detail"),
    text("request_id"),
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
};
