/** The figures of the page: how each is made from sums, in which unit, and whether more of it is better. */

import type { Sums } from "./panes.ts";
import type { Unit } from "../../format.ts";

export const METRICS = ["spend", "impressions", "clicks", "ctr", "cpc", "conversions", "cpa", "revenue", "roas"] as const;
export type Metric = (typeof METRICS)[number];

export interface Definition {
  readonly unit: Unit;
  /** Sums add up over time; ratios do not. */
  readonly additive: boolean;
  /** 1: more is better; -1: less is better; 0: neither. */
  readonly better: 1 | -1 | 0;
  /** Money in micros, counts and ratios as they are; undefined where it has no value (0/0). */
  readonly value: (sums: Sums) => number | undefined;
}

const MICROS = 1_000_000;
const ratio = (above: number, below: number): number | undefined => (below === 0 ? undefined : above / below);

export const DEFINITIONS: Record<Metric, Definition> = {
  spend: { unit: "money", additive: true, better: 0, value: (s) => s[3] },
  impressions: { unit: "count", additive: true, better: 1, value: (s) => s[1] },
  clicks: { unit: "count", additive: true, better: 1, value: (s) => s[2] },
  ctr: { unit: "percent", additive: false, better: 1, value: (s) => ratio(s[2], s[1]) },
  cpc: { unit: "unit_money", additive: false, better: -1, value: (s) => ratio(s[3], s[2]) },
  conversions: { unit: "count", additive: true, better: 1, value: (s) => s[4] / MICROS },
  cpa: { unit: "unit_money", additive: false, better: -1, value: (s) => ratio(s[3] * MICROS, s[4]) },
  revenue: { unit: "money", additive: true, better: 1, value: (s) => s[5] },
  roas: { unit: "factor", additive: false, better: 1, value: (s) => ratio(s[5], s[3]) },
};

/** Changes smaller than this are neither good nor bad. */
const NOISE = 0.005;

/** The change of a metric between two windows: by how much of the old value, and whether that is good. */
export interface Change {
  readonly ratio: number;
  readonly tone: "good" | "bad" | "neutral";
}

/** undefined where either has no value, or the old one is zero. */
export function change(metric: Metric, now: Sums | undefined, before: Sums | undefined): Change | undefined {
  if (now === undefined || before === undefined) return undefined;
  const { value, better } = DEFINITIONS[metric];
  const [to, from] = [value(now), value(before)];
  if (to === undefined || from === undefined || from === 0) return undefined;
  const by = (to - from) / Math.abs(from);
  const direction = Math.abs(by) < NOISE ? 0 : Math.sign(by) * better;
  return { ratio: by, tone: direction > 0 ? "good" : direction < 0 ? "bad" : "neutral" };
}
