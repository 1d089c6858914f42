/** A frame: everything the page shows of the panes at one moment, computed from them. Pure. */

import type { Range } from "../../app/address.ts";
import { depth, entityKey, parseEntity } from "./entity.ts";
import { change, DEFINITIONS, METRICS, type Change, type Metric } from "./metrics.ts";
import { endOfPane, type Panes, plus, type Sums, ZERO } from "./panes.ts";
import { buckets, compared, current, PLANS, type Span } from "./windows.ts";

export interface View {
  readonly range: Range;
  /** Empty: all. */
  readonly platforms: readonly string[];
  /** Part of a campaign's name, in any case. */
  readonly campaign: string;
  readonly currency: string;
  readonly metric: Metric;
}

export interface Figure {
  readonly metric: Metric;
  readonly value: number | undefined;
  readonly change: Change | undefined;
  readonly trend: readonly (number | undefined)[];
}

export interface Point extends Span {
  /** Of the metric; additive ones per bucket of the current window, also where the past is known more coarsely only. */
  readonly value: number | undefined;
  /** final: events on time are in; provisional: may still come; partial: its time is not over, so a sum is not all of it. */
  readonly state: "final" | "provisional" | "partial";
}

export interface Row {
  readonly id: string;
  readonly platform: string;
  readonly account: string;
  readonly campaign: string;
  readonly sums: Sums;
}

export interface Frame {
  readonly now: number;
  readonly range: Range;
  readonly window: Span;
  readonly currency: string;
  readonly figures: readonly Figure[];
  /** What the changes of the figures compare; undefined when the past is not known. */
  readonly compared: Span | undefined;
  readonly line: readonly Point[];
  /** The window before, moved onto the current one. */
  readonly past: readonly Point[];
  readonly rows: readonly Row[];
  readonly total: Sums;
}

/** undefined while the panes do not hold all of the window. */
export function frame(panes: Panes, view: View, now: number, watermark: number): Frame | undefined {
  const window = current(view.range, now);
  const byEntity = sumsOf(panes, view.range, window, now);
  if (byEntity === undefined) return undefined;
  const rows = campaigns(byEntity, view);
  const scope = scopeOf(panes, view);
  const sums = scope.reduce((total, entity) => plus(total, byEntity.get(entity) ?? ZERO), ZERO);
  const spans = buckets(view.range, window);
  const series = spans.map((span) => bucketOf(panes, scope, span, now));
  const pair = compared(view.range, watermark);
  const before = pair && panes.of(scope, pair.before.from, pair.before.to);
  const after = pair && panes.of(scope, pair.now.from, pair.now.to);
  return {
    now,
    range: view.range,
    window,
    currency: view.currency,
    figures: METRICS.map((metric) => ({
      metric,
      value: DEFINITIONS[metric].value(sums),
      change: change(metric, after, before),
      trend: trend(metric, spans, series, now),
    })),
    compared: before && after && pair.now,
    line: spans.map((span, place) => ({
      ...span,
      value: series[place] && DEFINITIONS[view.metric].value(series[place]),
      state: span.to <= watermark ? "final" : span.to > now && DEFINITIONS[view.metric].additive ? "partial" : "provisional",
    })),
    past: past(panes, view, scope, window),
    rows,
    total: rows.reduce((total, row) => plus(total, row.sums), ZERO),
  };
}

/** A campaign's values over the window, without the open bucket. */
export function trendOf(panes: Panes, view: View, entity: string, now: number): (number | undefined)[] {
  const spans = buckets(view.range, current(view.range, now));
  return trend(
    view.metric,
    spans,
    spans.map((span) => bucketOf(panes, [entity], span, now)),
    now,
  );
}

/** Currencies in which there are events in the window, the busiest first. */
export function currencies(panes: Panes, range: Range, now: number): string[] {
  const found = [...(sumsOf(panes, range, current(range, now), now) ?? [])].filter(([entity]) => depth(entity) === 1);
  return found.sort(([, a], [, b]) => b[0] - a[0]).map(([entity]) => parseEntity(entity).currency);
}

/** Campaigns and platforms that any pane knows. */
export function known(panes: Panes): { platforms: string[]; campaigns: string[] } {
  const entities = [...panes.entities()].filter((entity) => depth(entity) === 4).map(parseEntity);
  const distinct = (values: string[]) => [...new Set(values)].filter((value) => value !== "").sort();
  return { platforms: distinct(entities.map((e) => e.platform)), campaigns: distinct(entities.map((e) => e.campaign)) };
}

/** What ends more than a minute ago seldom changes and is kept summed; only the rest is added up for each frame. */
function sumsOf(panes: Panes, range: Range, window: Span, now: number): Map<string, Sums> | undefined {
  const { pane } = PLANS[range];
  const cut = Math.max(window.from, Math.floor((now - 60_000) / pane) * pane);
  // Where events came that are ahead of the clock, the server has let go of the first panes already.
  const from = [window.from, window.from + Math.max(pane, 60_000)].find((at) => panes.covers(at, cut)) ?? window.from;
  const [old, recent] = [panes.between(from, cut), panes.between(cut, Math.min(window.to, endOfPane(now)))];
  if (old === undefined || recent === undefined) return undefined;
  const total = new Map(old);
  for (const [entity, sums] of recent) total.set(entity, plus(total.get(entity) ?? ZERO, sums));
  return total;
}

/** A bucket's sums; of the open one, what there is of it. */
function bucketOf(panes: Panes, scope: string[], { from, to }: Span, now: number): Sums | undefined {
  return panes.of(scope, from, Math.min(to, endOfPane(now)));
}

function campaigns(byEntity: Map<string, Sums>, view: View): Row[] {
  const rows: Row[] = [];
  for (const [id, sums] of byEntity) if (isChosen(id, view)) rows.push({ id, ...parseEntity(id), sums });
  return rows;
}

function isChosen(key: string, view: View): boolean {
  if (depth(key) !== 4) return false;
  const { currency, platform, campaign } = parseEntity(key);
  return (
    currency === view.currency &&
    (view.platforms.length === 0 || view.platforms.includes(platform)) &&
    campaign.toLowerCase().includes(view.campaign.trim().toLowerCase())
  );
}

/** The entities whose sums make the figures: the highest that say it all, so that events without a campaign count. */
function scopeOf(panes: Panes, view: View): string[] {
  if (view.campaign.trim() !== "") return [...panes.entities()].filter((key) => isChosen(key, view));
  if (view.platforms.length > 0) return view.platforms.map((platform) => entityKey([view.currency, platform]));
  return [entityKey([view.currency])];
}

function trend(metric: Metric, spans: Span[], series: (Sums | undefined)[], now: number): (number | undefined)[] {
  return series.filter((_, place) => spans[place]!.to <= now).map((sums) => sums && DEFINITIONS[metric].value(sums));
}

function past(panes: Panes, view: View, scope: string[], { from, to }: Span): Point[] {
  const { length, bucket, compare } = PLANS[view.range];
  if (compare === undefined) return [];
  const step = panes.covers(from - length, to - length - bucket) ? bucket : compare;
  const { additive, value } = DEFINITIONS[view.metric];
  const points: Point[] = [];
  let begun = false; // before the first event there was nothing to measure, which is not the same as zero
  for (let at = Math.ceil((from - length) / step) * step; at < to - length; at += step) {
    const sums = panes.of(scope, at, at + step);
    begun ||= sums !== undefined && sums[0] > 0;
    const found = begun && sums ? value(sums) : undefined;
    points.push({
      from: at + length,
      to: at + step + length,
      value: found === undefined || !additive ? found : (found * bucket) / step,
      state: "final",
    });
  }
  return points;
}
