/**
 * Panes: exact sums of stretches of event time per entity, from queries and from the channel `metrics`, merged.
 *
 * Values are absolute. Of two values of the same (entity, at, step) the one that counts more events is the newer, since events
 * are only ever added to a pane: so putting is commutative and idempotent, and it does not matter whether an answer to a
 * query or a publication comes first.
 */

import type { MetricItem } from "../../data/contract.ts";

/** Events, impressions, clicks, spend_micros, conversions_micros, revenue_micros. */
export type Sums = Readonly<MetricItem["sums"]>;

export const ZERO: Sums = [0, 0, 0, 0, 0, 0];
export const FINE_MS = 10_000;

/** Steps of panes in ms, finest first. */
export const STEPS = [FINE_MS, 60_000, 900_000, 3_600_000] as const;
export type Step = (typeof STEPS)[number];

/** How much the page keeps of each step: more than any of its windows and their past reach back. */
const KEPT_MS: Record<Step, number> = {
  [STEPS[0]]: 32 * 60_000,
  [STEPS[1]]: 6.5 * 3_600_000,
  [STEPS[2]]: 25 * 3_600_000,
  [STEPS[3]]: 7.1 * 86_400_000,
};

/** A value of a pane; `closed`: events on time can no longer change it, as far as is known. */
export type Item = Omit<MetricItem, "closed"> & { readonly closed?: boolean };

/** End of the finest pane that holds a moment. */
export function endOfPane(at: number): number {
  return (Math.floor(at / FINE_MS) + 1) * FINE_MS;
}

export function plus(a: Sums, b: Sums): Sums {
  return [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5]];
}

interface Layer {
  readonly panes: Map<number, Map<string, Sums>>;
  /** Panes that lie in [from, to) and are not there hold nothing; outside nothing is known. */
  from: number;
  to: number;
}

interface Tile {
  readonly step: Step;
  readonly at: number;
}

export class Panes {
  private readonly layers = new Map<Step, Layer>(
    STEPS.map((step) => [step, { panes: new Map(), from: Infinity, to: -Infinity }]),
  );
  private readonly kept = new Map<string, Map<string, Sums>>();
  /** End of the newest pane with events in it, epoch ms; 0 without any. */
  newest = 0;

  /** Takes a value; false when it is no news, or of a step that is not kept. */
  put(item: Item): boolean {
    const layer = this.layers.get(item.pane_ms as Step);
    if (layer === undefined) return false;
    let pane = layer.panes.get(item.at);
    if (pane === undefined) {
      pane = new Map();
      layer.panes.set(item.at, pane);
    }
    const held = pane.get(item.entity);
    if (held !== undefined && (held[0] > item.sums[0] || same(held, item.sums))) return false;
    pane.set(item.entity, item.sums);
    if (item.sums[0] > 0 && item.at + item.pane_ms > this.newest) this.newest = item.at + item.pane_ms;
    this.forget(item.at, item.at + item.pane_ms);
    return true;
  }

  /** Says that everything in [from, to) of this step has been put; to Infinity: and will be, as it comes. */
  cover(step: Step, from: number, to: number): void {
    const layer = this.layers.get(step)!;
    const first = Math.ceil(from / step) * step;
    const end = to === Infinity ? to : Math.floor(to / step) * step;
    if (first >= end) return;
    const touches = first <= layer.to && end >= layer.from;
    layer.from = touches ? Math.min(layer.from, first) : first;
    layer.to = touches ? Math.max(layer.to, end) : end;
    this.kept.clear();
  }

  /** Publications may be missed from `at` on: until more is put and covered, nothing behind the pane of then is known. */
  interrupted(at: number): void {
    const fine = this.layers.get(FINE_MS)!;
    fine.to = Math.min(fine.to, endOfPane(at));
    if (fine.to <= fine.from) [fine.from, fine.to] = [Infinity, -Infinity];
    this.kept.clear();
  }

  /** From when on panes of this step are known, epoch ms; Infinity when none are. */
  coveredFrom(step: Step): number {
    return this.layers.get(step)!.from;
  }

  coveredTo(step: Step): number {
    return this.layers.get(step)!.to;
  }

  /** Whether the sums of [from, to) can be told exactly. */
  covers(from: number, to: number): boolean {
    return this.tiles(from, to) !== undefined;
  }

  /** Sums of [from, to) by entity, or undefined when a part of it is not known. Both are multiples of the finest step. */
  between(from: number, to: number): Map<string, Sums> | undefined {
    const key = `${from} ${to}`;
    const known = this.kept.get(key);
    if (known !== undefined) return known;
    const tiles = this.tiles(from, to);
    if (tiles === undefined) return undefined;
    const total = new Map<string, Sums>();
    for (const { step, at } of tiles) {
      const pane = this.layers.get(step)!.panes.get(at);
      if (pane !== undefined) for (const [entity, sums] of pane) add(total, entity, sums);
    }
    if (this.kept.size >= 16) this.kept.delete(this.kept.keys().next().value!);
    this.kept.set(key, total);
    return total;
  }

  /** Sums of some entities in [from, to), or undefined when a part of it is not known. */
  of(entities: readonly string[], from: number, to: number): Sums | undefined {
    const tiles = this.tiles(from, to);
    if (tiles === undefined) return undefined;
    let total = ZERO;
    for (const { step, at } of tiles) {
      const pane = this.layers.get(step)!.panes.get(at);
      if (pane === undefined) continue;
      for (const entity of entities) {
        const sums = pane.get(entity);
        if (sums !== undefined) total = plus(total, sums);
      }
    }
    return total;
  }

  /** All entities that any kept pane knows. */
  entities(): Set<string> {
    const found = new Set<string>();
    for (const { panes } of this.layers.values())
      for (const pane of panes.values()) for (const entity of pane.keys()) found.add(entity);
    return found;
  }

  /** Lets go of what no window reaches any more. */
  prune(now: number): void {
    for (const [step, layer] of this.layers) {
      const oldest = Math.floor((now - KEPT_MS[step]) / step) * step;
      for (const at of layer.panes.keys()) if (at < oldest) layer.panes.delete(at);
      if (layer.from < oldest) layer.from = oldest;
      if (layer.to <= layer.from) [layer.from, layer.to] = [Infinity, -Infinity];
    }
  }

  /** The panes that make up [from, to): of those that are known the finest, which publications keep amending. */
  private tiles(from: number, to: number): Tile[] | undefined {
    const tiles: Tile[] = [];
    for (let at = from; at < to;) {
      const step = STEPS.find((step) => at % step === 0 && at + step <= to && this.knows(step, at));
      if (step === undefined) return undefined;
      tiles.push({ step, at });
      at += step;
    }
    return tiles;
  }

  private knows(step: Step, at: number): boolean {
    const layer = this.layers.get(step)!;
    return at >= layer.from && at + step <= layer.to;
  }

  private forget(from: number, to: number): void {
    for (const key of this.kept.keys()) {
      const [start, end] = key.split(" ").map(Number) as [number, number];
      if (start < to && end > from) this.kept.delete(key);
    }
  }
}

function add(total: Map<string, Sums>, entity: string, sums: Sums): void {
  const held = total.get(entity);
  total.set(entity, held === undefined ? sums : plus(held, sums));
}

function same(a: Sums, b: Sums): boolean {
  return a.every((value, place) => value === b[place]);
}
