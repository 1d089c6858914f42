/** How the page's data is: whether it flows, and how old it is. */

import type { Connection } from "../../ui/ConnectionState.svelte";
import { Unreachable } from "../../data/api.ts";

interface Told {
  readonly flowing: boolean;
  readonly pausedAt: number | undefined;
  readonly problem: Error | undefined;
  readonly heardAt: number;
  readonly everFlowed: boolean;
  readonly now: number;
  readonly newest: number;
  readonly online: boolean;
}

export function connectionOf({ flowing, pausedAt, problem, everFlowed, online }: Told): Connection {
  if (!online || problem instanceof Unreachable) return "offline";
  if (!flowing) return everFlowed ? "reconnecting" : "connecting";
  return pausedAt === undefined ? "live" : "paused";
}

const CURRENT_MS = 3000;
const STALE_MS = 30_000;

export interface Freshness {
  readonly newest: number;
  readonly ageMs: number;
  readonly current: boolean;
  readonly stale: boolean;
}

/**
 * The age of the newest event. Panes tell it to ten seconds only: when one came in for the pane that was open, it is as old as
 * the time since then.
 */
export function freshnessOf({ heardAt, newest, now }: Pick<Told, "heardAt" | "newest" | "now">): Freshness {
  const at = Math.min(newest, heardAt);
  const ageMs = Math.max(0, now - at);
  return { newest: at, ageMs, current: ageMs < CURRENT_MS, stale: ageMs > STALE_MS };
}
