import { describe, expect, test } from "vitest";

import type { HistoryIncident, IncidentItem } from "../src/data/contract.ts";
import { Incidents, metricOf } from "../src/modules/live/incidents.ts";

const NOW = 1_800_000_000_000;

function raw(id: string, changes: Partial<IncidentItem> = {}): IncidentItem {
  return {
    id,
    key: `rule/${id}`,
    entity: "USD/meta/a/c",
    events: [],
    rule: "rule",
    severity: "high",
    level: "campaign",
    currency: "USD",
    platform: "meta",
    account: "a",
    campaign: "c",
    ad_set: "",
    ad: "",
    state: "firing",
    at: NOW,
    value: 1,
    window: "1m",
    sums: [1, 2, 3, 4, 5, 6],
    version: 1,
    ...changes,
  };
}

describe("list", () => {
  test("is ordered by severity, then by what is newest", () => {
    const incidents = new Incidents();
    incidents.merge([
      raw("low", { severity: "low", at: NOW + 9 }),
      raw("old", { severity: "critical", at: NOW }),
      raw("new", { severity: "critical", at: NOW + 5 }),
      raw("medium", { severity: "medium" }),
      raw("high", { severity: "high" }),
    ]);
    expect(incidents.firing().map((incident) => incident.id)).toEqual(["new", "old", "high", "medium", "low"]);
  });

  test("an incident that ends moves to the resolved ones and keeps its beginning and its value", () => {
    const incidents = new Incidents();
    incidents.merge([raw("a", { value: 7 })]);
    incidents.merge([raw("a", { state: "resolved", at: NOW + 60_000, value: 0, version: 2 })]);
    expect(incidents.firing()).toEqual([]);
    expect(incidents.resolved()[0]).toMatchObject({ started_at: NOW, resolved_at: NOW + 60_000, value: 7 });
  });

  test("an older version changes nothing, whichever way it comes", () => {
    const incidents = new Incidents();
    incidents.merge([raw("a", { state: "resolved", version: 2 })]);
    incidents.merge([raw("a", { version: 1 })]);
    expect(incidents.firing()).toEqual([]);
  });

  test("of an end whose beginning was not heard of the beginning is not made up", () => {
    const incidents = new Incidents();
    incidents.merge([raw("a", { state: "resolved", version: 2 })]);
    expect(incidents.resolved()[0]!.started_at).toBeUndefined();
  });

  test("REST's times are understood", () => {
    const incidents = new Incidents();
    const { at: _at, severity: _severity, sums, ...rest } = raw("a");
    const listed: HistoryIncident = {
      ...rest,
      severity: "high",
      sums: [...sums],
      at: "2027-01-15T09:00:00Z", // when it changed last
      started_at: "2027-01-15T08:00:00Z",
      resolved_at: null,
      reason: null,
    };
    incidents.merge([listed]);
    expect(incidents.firing()[0]!.started_at).toBe(NOW);
  });
});

describe("news", () => {
  test("only what begins and was not known is new", () => {
    const incidents = new Incidents();
    expect(incidents.merge([raw("a"), raw("b", { state: "resolved" })]).map((incident) => incident.id)).toEqual(["a"]);
    expect(incidents.merge([raw("a"), raw("a", { version: 2 })])).toEqual([]);
  });

  test("a snapshot ends what is not in it", () => {
    const incidents = new Incidents();
    incidents.merge([raw("gone"), raw("stays")]);
    incidents.replaceFiring([raw("stays"), raw("new")]);
    expect(
      incidents
        .firing()
        .map((incident) => incident.id)
        .sort(),
    ).toEqual(["new", "stays"]);
  });

  test("an answer does not end what began after the question", () => {
    const incidents = new Incidents();
    incidents.merge([raw("before", { at: NOW - 10 }), raw("after", { at: NOW + 10 })]);
    incidents.replaceFiring([], NOW);
    expect(incidents.firing().map((incident) => incident.id)).toEqual(["after"]);
  });
});

describe("value", () => {
  const sums = [40, 12_000, 31, 48_000_000, 2_000_000, 30_000_000] as const;

  test("is known by the sums that make it, and told in the page's units", () => {
    expect(metricOf({ value: 48, sums })).toEqual({ metric: "spend", value: 48_000_000 });
    expect(metricOf({ value: 31 / 12_000, sums })).toEqual({ metric: "ctr", value: 31 / 12_000 });
    expect(metricOf({ value: 48 / 31, sums })).toEqual({ metric: "cpc", value: 48_000_000 / 31 });
  });

  test("is a bare number where no sums make it", () => {
    expect(metricOf({ value: 0.123, sums })).toBeUndefined();
    expect(metricOf({ value: undefined, sums })).toBeUndefined();
  });
});
