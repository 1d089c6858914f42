/** Panes over REST: what is asked, in how many parts, and what the answers' rows are as items. */

import { Problem } from "../../data/api.ts";
import type { PanesQuery, QueryResult } from "../../data/contract.ts";
import { entityKey } from "./entity.ts";
import { type Item, plus, type Step, type Sums, ZERO } from "./panes.ts";
import type { Wanted } from "./windows.ts";

const MEASURES = ["events", "impressions", "clicks", "spend_micros", "conversions_micros", "revenue_micros"] as const;
const PATH = ["currency", "platform", "account", "campaign"] as const;
const STEP_NAMES = { 10000: "10s", 60000: "1m", 900000: "15m", 3600000: "1h" } as const satisfies Record<Step, string>;

/** Senders' clocks may be ahead by so much, and the server keeps its panes behind the newest event. */
const AHEAD_MS = 60_000;
/** An answer may be cut this often in two: a day of a thousand campaigns comes in a few dozen parts. */
const DEEPEST = 6;

export interface Answer {
  readonly items: readonly Item[];
  /** What was asked for begins here, epoch ms. */
  readonly from: number;
  /** Final up to here; 0 where there are no events. */
  readonly watermark: number;
}

type Ask = (query: PanesQuery) => Promise<QueryResult>;

/** All panes of a step since `from`. What is too long for one answer is asked for in parts. */
export async function panesSince({ step, from }: Wanted, now: number, ask: Ask): Promise<Answer> {
  try {
    return await between(step, from, undefined, now, ask, DEEPEST);
  } catch (error) {
    if (!(error instanceof Problem && error.code === "not_kept")) throw error;
    return between(step, from + Math.max(step, AHEAD_MS), undefined, now, ask, DEEPEST);
  }
}

async function between(
  step: Step,
  from: number,
  to: number | undefined,
  now: number,
  ask: Ask,
  deepest: number,
): Promise<Answer> {
  try {
    const result = await ask(queryFor(step, from, to));
    return { items: itemsOf(result, step), from, watermark: Date.parse(result.watermark ?? "") || 0 };
  } catch (error) {
    const middle = Math.ceil(((to ?? now) + from) / 2 / step) * step;
    const cannot = deepest === 0 || middle <= from || middle >= (to ?? now);
    if (cannot || !(error instanceof Problem && error.code === "too_many_rows")) throw error;
    const first = await between(step, from, middle, now, ask, deepest - 1);
    const second = await between(step, middle, to, now, ask, deepest - 1);
    return { items: [...first.items, ...second.items], from, watermark: second.watermark };
  }
}

function queryFor(step: Step, from: number, to: number | undefined): PanesQuery {
  return {
    dataset: "panes",
    measures: MEASURES,
    dimensions: ["time", ...PATH],
    from: new Date(from).toISOString(),
    to: to === undefined ? "now" : new Date(to).toISOString(),
    step: STEP_NAMES[step],
  };
}

/** The rows as items, with those of the org and of the platforms that they add up to. Throws when a column is missing. */
export function itemsOf(result: QueryResult, step: Step): Item[] {
  const place = (name: string): number => {
    const found = result.columns.findIndex((column) => column.name === name);
    if (found < 0) throw new Error(`the answer has no column ${name}, only ${result.columns.map((c) => c.name).join(", ")}`);
    return found;
  };
  const [time, path, measures] = [place("time"), PATH.map(place), MEASURES.map(place)];
  const items = new Map<string, { entity: string; at: number; pane_ms: number; sums: Sums }>();
  const take = (entity: string, at: number, sums: Sums) => {
    const key = `${at} ${entity}`;
    items.set(key, { entity, at, pane_ms: step, sums: plus(items.get(key)?.sums ?? ZERO, sums) });
  };
  for (const row of result.rows) {
    const at = Date.parse(String(row[time]));
    const parts = path.map((column) => String(row[column] ?? ""));
    const sums = measures.map((column) => Number(row[column] ?? 0)) as unknown as Sums;
    take(entityKey(parts.slice(0, 1)), at, sums);
    if (parts[1] !== "") take(entityKey(parts.slice(0, 2)), at, sums);
    if (parts[3] !== "") take(entityKey(parts), at, sums);
  }
  return [...items.values()];
}
