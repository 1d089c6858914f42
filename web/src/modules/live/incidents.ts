/** Incidents of an org: a list from REST, kept up to date by the channel `incidents`. Pure. */

import type { HistoryIncident, IncidentItem } from "../../data/contract.ts";
import { DEFINITIONS, METRICS, type Metric } from "./metrics.ts";
import type { Sums } from "./panes.ts";
import { severityRank, type Severity } from "../../ui/severity.ts";

export interface Incident {
  readonly id: string;
  /** Rule and entity, of which incidents are episodes. */
  readonly key: string;
  readonly rule: string;
  readonly severity: Severity;
  readonly level: string;
  readonly currency: string;
  readonly platform: string;
  readonly account: string;
  readonly campaign: string;
  readonly ad_set: string;
  readonly ad: string;
  readonly state: "firing" | "resolved";
  /** undefined: only its end was heard of. */
  readonly started_at: number | undefined;
  readonly resolved_at: number | undefined;
  readonly value: number | undefined;
  readonly window: string;
  readonly sums: Sums | undefined;
  readonly version: number;
}

/** As REST lists it, or as a publication of the channel tells of its last change (with `at` instead of the two times). */
export type RawIncident = HistoryIncident | IncidentItem;

const RESOLVED_KEPT = 50;

export class Incidents {
  private readonly byId = new Map<string, Incident>();

  /** Takes incidents; returns those that began to fire and were not known. Older versions change nothing. */
  merge(items: readonly RawIncident[]): Incident[] {
    const begun: Incident[] = [];
    for (const raw of items) {
      const held = this.byId.get(raw.id);
      if (held !== undefined && held.version >= raw.version) continue;
      const incident = read(raw, held);
      this.byId.set(incident.id, incident);
      if (held === undefined && incident.state === "firing") begun.push(incident);
    }
    for (const { id } of this.resolved().slice(RESOLVED_KEPT)) this.byId.delete(id);
    return begun;
  }

  /** Takes all that fired at `asOf` (epoch ms): others that were firing then are not any more, since when is not known. */
  replaceFiring(items: readonly RawIncident[], asOf = Infinity): void {
    const firing = new Set(items.map((item) => item.id));
    for (const { id, started_at } of this.firing()) if (!firing.has(id) && (started_at ?? 0) < asOf) this.byId.delete(id);
    this.merge(items);
  }

  /** Highest severity first, then the newest. */
  firing(): Incident[] {
    return [...this.byId.values()]
      .filter((incident) => incident.state === "firing")
      .sort(
        (a, b) => severityRank(a.severity) - severityRank(b.severity) || (b.started_at ?? 0) - (a.started_at ?? 0) || order(a, b),
      );
  }

  /** The newest first. */
  resolved(): Incident[] {
    return [...this.byId.values()]
      .filter((incident) => incident.state === "resolved")
      .sort((a, b) => (b.resolved_at ?? 0) - (a.resolved_at ?? 0) || order(a, b));
  }
}

const order = (a: Incident, b: Incident): number => (a.id < b.id ? -1 : 1);

function read(raw: RawIncident, held: Incident | undefined): Incident {
  const {
    id,
    key,
    rule,
    state,
    version,
    level = "",
    currency = "",
    platform = "",
    account = "",
    campaign = "",
    ad_set = "",
    ad = "",
    window = "",
  } = raw;
  const [began, ended] =
    "started_at" in raw
      ? [toMs(raw.started_at), toMs(raw.resolved_at)]
      : state === "firing"
        ? [raw.at, undefined]
        : [undefined, raw.at];
  return {
    id,
    key,
    rule,
    level,
    currency,
    platform,
    account,
    campaign,
    ad_set,
    ad,
    state,
    window,
    version,
    severity: raw.severity as Severity,
    started_at: began ?? held?.started_at,
    resolved_at: ended,
    // The values of the moment it began stay: at the end they say only that the condition no longer holds.
    value: (held ?? raw).value ?? undefined,
    sums: held?.sums ?? (raw.sums?.length === 6 ? (raw.sums as unknown as Sums) : undefined),
  };
}

function toMs(time: string | null): number | undefined {
  return time === null ? undefined : Date.parse(time);
}

/**
 * Which metric an incident's value is of, and the value in the page's units: items do not name it, but the engine computes
 * it from these very sums, to the last bit. undefined for others (changes, rates, custom metrics).
 */
export function metricOf({ value, sums }: Pick<Incident, "value" | "sums">): { metric: Metric; value: number } | undefined {
  if (value === undefined || sums === undefined) return undefined;
  const engine: Record<Metric, number> = {
    spend: sums[3] / 1e6,
    impressions: sums[1],
    clicks: sums[2],
    ctr: sums[2] / sums[1],
    cpc: sums[3] / 1e6 / sums[2],
    conversions: sums[4] / 1e6,
    cpa: sums[3] / sums[4],
    revenue: sums[5] / 1e6,
    roas: sums[5] / sums[3],
  };
  const metric = METRICS.find((metric) => engine[metric] === value);
  const own = metric && DEFINITIONS[metric].value(sums);
  return metric === undefined || own === undefined ? undefined : { metric, value: own };
}
