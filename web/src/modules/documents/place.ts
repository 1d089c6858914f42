/** Addresses within the pages of a kind: the time zone goes along, and the way back leads to the list as it was left. */

import { documentsPath, withParameters } from "../../app/address.ts";
import { location } from "../../app/location.svelte.ts";
import type { Kind } from "../../data/kinds.ts";

const left = new Map<string, string>();

export function hrefOf(org: string, kind: Kind, ...more: string[]): string {
  return documentsPath(org, kind, ...more) + withParameters("", { tz: location.query.get("tz") ?? "" });
}

/** The form for a new one. start: what it begins with, a template by its name or another document by its id. */
export function newHref(org: string, kind: Kind, start: { readonly template?: string; readonly from?: string } = {}): string {
  return documentsPath(org, kind, "new") + withParameters("", { tz: location.query.get("tz") ?? "", ...start });
}

/** Remembers the list's parameters. */
export function leaveList(org: string, kind: Kind, search: string): void {
  left.set(`${org} ${kind.name}`, search);
}

export function listHref(org: string, kind: Kind): string {
  const parameters = { tz: location.query.get("tz") ?? "" };
  return documentsPath(org, kind) + withParameters(left.get(`${org} ${kind.name}`) ?? "", parameters);
}
