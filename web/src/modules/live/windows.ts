/** Windows: which stretches of time a range means, and which panes they are made of. Times are epoch ms. */

import type { Range } from "../../app/address.ts";
import { STEPS, type Step } from "./panes.ts";

const [FINE_MS, MINUTE, QUARTER, HOUR] = STEPS;
const DAY = 24 * HOUR;

interface Plan {
  readonly length: number;
  /** The window is made of whole panes of this step, as the engine's windows are. */
  readonly pane: Step;
  /** One point of the line. */
  readonly bucket: number;
  /** Comparisons end at a multiple of this: the step of the panes that still exist of the window before. */
  readonly compare?: Step;
}

export const PLANS: Record<Range, Plan> = {
  "5m": { length: 5 * MINUTE, pane: FINE_MS, bucket: FINE_MS, compare: FINE_MS },
  "15m": { length: 15 * MINUTE, pane: FINE_MS, bucket: FINE_MS, compare: MINUTE },
  "1h": { length: HOUR, pane: MINUTE, bucket: MINUTE, compare: MINUTE },
  "6h": { length: 6 * HOUR, pane: MINUTE, bucket: 5 * MINUTE, compare: QUARTER },
  "24h": { length: DAY, pane: QUARTER, bucket: QUARTER, compare: HOUR },
  "7d": { length: 7 * DAY, pane: HOUR, bucket: HOUR },
};

export interface Span {
  readonly from: number;
  readonly to: number;
}

/** The window that `now` is in: its newest pane is the open one. */
export function current(range: Range, now: number): Span {
  const { length, pane } = PLANS[range];
  const to = (Math.floor(now / pane) + 1) * pane;
  return { from: to - length, to };
}

/** The newest two windows of the range's length of which every event up to `watermark` is in, one after the other. */
export function compared(range: Range, watermark: number): { now: Span; before: Span } | undefined {
  const { length, compare } = PLANS[range];
  if (compare === undefined) return undefined;
  const to = Math.floor(watermark / compare) * compare;
  return { now: { from: to - length, to }, before: { from: to - 2 * length, to: to - length } };
}

/** The points of the line over a span, each [from, to), on the clock's round times. */
export function buckets(range: Range, { from, to }: Span): Span[] {
  const { bucket } = PLANS[range];
  const spans: Span[] = [];
  for (let at = Math.ceil(from / bucket) * bucket; at < to; at += bucket) spans.push({ from: at, to: at + bucket });
  return spans;
}

export interface Wanted {
  readonly step: Step;
  readonly from: number;
}

/** The panes that a range needs from the server, finest first: those show first. Each step reaches from `from` to now. */
export function wanted(range: Range, now: number): Wanted[] {
  const { length, pane, compare } = PLANS[range];
  const needs = new Map<Step, number>([[FINE_MS, current("15m", now).from]]);
  const need = (step: Step, from: number) => needs.set(step, Math.min(needs.get(step) ?? Infinity, from));
  need(pane, current(range, now).from);
  // The open pane of a coarse step, and the one before while the server may not have closed it, are made of finer ones.
  if (pane > MINUTE) need(MINUTE, (Math.floor(now / pane) - 1) * pane);
  if (compare !== undefined) need(compare, Math.floor(now / compare) * compare - 2 * length - compare);
  return [...needs].map(([step, from]) => ({ step, from })).sort((a, b) => a.step - b.step);
}
