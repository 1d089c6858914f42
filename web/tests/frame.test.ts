import { describe, expect, test } from "vitest";

import type { Range } from "../src/app/address.ts";
import { entityKey, parseEntity } from "../src/modules/live/entity.ts";
import { currencies, frame, known, trendOf, type View } from "../src/modules/live/frame.ts";
import { FINE_MS, Panes, type Step, type Sums } from "../src/modules/live/panes.ts";
import { compared, current, wanted } from "../src/modules/live/windows.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const NOW = 1_800_000_000_000 + 7 * MINUTE + 3_000; // three seconds into a pane

const VIEW: View = { range: "5m", platforms: [], campaign: "", currency: "USD", metric: "spend" };

const sums = (spend: number, clicks = 10): Sums => [1, 1000, clicks, spend * 1e6, 2_000_000, spend * 3e6];

/** Every fine pane of the last 15 minutes with the same sums, for two campaigns in USD, one in EUR, and what has no campaign. */
function filled(spendAt: (at: number) => number = () => 1): Panes {
  const panes = new Panes();
  panes.cover(FINE_MS, NOW - 16 * MINUTE, Infinity);
  for (let at = current("15m", NOW).from; at <= NOW; at += FINE_MS) {
    const spend = spendAt(at);
    const put = (entity: string, one: Sums) => panes.put({ entity, at, pane_ms: FINE_MS, sums: one });
    put("USD/meta/act/Spring", sums(spend));
    put("USD/x/act/brand", sums(2 * spend));
    put("USD/meta", sums(spend));
    put("USD/x", sums(2 * spend));
    put("USD", sums(4 * spend)); // one part of four has no campaign
    put("EUR/meta/act/spring", sums(7));
    put("EUR/meta", sums(7));
    put("EUR", sums(7));
  }
  return panes;
}

const spendOf = (found: ReturnType<typeof frame>) => found!.figures.find((figure) => figure.metric === "spend")!.value! / 1e6;

describe("scope", () => {
  test("without filters the figures are the org's, with what has no campaign", () => {
    expect(spendOf(frame(filled(), VIEW, NOW, NOW))).toBe(30 * 4);
  });

  test("a platform's are that platform's", () => {
    expect(spendOf(frame(filled(), { ...VIEW, platforms: ["x"] }, NOW, NOW))).toBe(30 * 2);
    expect(spendOf(frame(filled(), { ...VIEW, platforms: ["meta", "x"] }, NOW, NOW))).toBe(30 * 3);
  });

  test("a part of a campaign's name, in any case, finds that currency's campaigns", () => {
    const found = frame(filled(), { ...VIEW, campaign: " SPRING" }, NOW, NOW)!;
    expect(found.rows.map((row) => row.campaign)).toEqual(["Spring"]);
    expect(spendOf(found)).toBe(30);
    expect(found.total[3]).toBe(30e6);
  });

  test("currencies are never added up", () => {
    expect(spendOf(frame(filled(), { ...VIEW, currency: "EUR" }, NOW, NOW))).toBe(30 * 7);
    expect(currencies(filled(), "5m", NOW)).toEqual(["USD", "EUR"]);
  });

  test("what there is to choose from is told without repetition", () => {
    expect(known(filled())).toEqual({ platforms: ["meta", "x"], campaigns: ["Spring", "brand", "spring"] });
  });
});

describe("windows", () => {
  test("the open pane counts, so an event is seen at once", () => {
    const panes = filled();
    const before = spendOf(frame(panes, VIEW, NOW, NOW));
    panes.put({ entity: "USD", at: current("5m", NOW).to - FINE_MS, pane_ms: FINE_MS, sums: [2, 1, 1, 9e6, 0, 0] });
    expect(spendOf(frame(panes, VIEW, NOW, NOW))).toBe(before - 4 + 9);
  });

  test("without the panes of all of it there is no frame", () => {
    expect(frame(filled(), { ...VIEW, range: "1h" }, NOW, NOW)).toBeUndefined();
  });

  test.each(["5m", "15m", "1h", "6h", "24h", "7d"] as Range[])("the panes that %s asks for make it and its past", (range) => {
    for (const now of [NOW, NOW - 3_000, NOW + 7 * MINUTE, NOW + 53 * MINUTE - 3_001]) {
      const panes = new Panes();
      for (const { step, from } of wanted(range, now)) panes.cover(step, from, step === FINE_MS ? Infinity : now - 6_000);
      const found = frame(panes, { ...VIEW, range }, now, now - 6_000)!;
      expect(found).toBeDefined();
      expect(found.compared === undefined).toBe(range === "7d");
      expect(found.past.every((point) => point.from >= found.window.from)).toBe(true);
      expect(found.past.length > 0).toBe(range !== "7d");
    }
  });

  test("no query reaches back further than the server's panes do", () => {
    const reach: Record<Step, number> = { 10000: 15 * MINUTE, 60000: 6 * HOUR, 900000: 24 * HOUR, 3600000: 7 * 24 * HOUR };
    for (const range of ["5m", "15m", "1h", "6h", "24h", "7d"] as Range[])
      for (const { step, from } of wanted(range, NOW)) expect(NOW - from).toBeLessThanOrEqual(reach[step]);
  });
});

describe("change", () => {
  test("compares whole windows of the same length, without what is not final", () => {
    const pair = compared("5m", NOW)!;
    expect(pair.now.to % FINE_MS).toBe(0);
    expect(pair.now.to).toBeLessThanOrEqual(NOW);
    expect(pair.before.to).toBe(pair.now.from);
    expect(pair.before.to - pair.before.from).toBe(pair.now.to - pair.now.from);
  });

  test("a cost that rises is bad, a result that rises is good, spend is neither", () => {
    const turn = compared("5m", NOW)!.now.from;
    const figures = frame(
      filled((at) => (at < turn ? 1 : 2)),
      VIEW,
      NOW,
      NOW,
    )!.figures;
    const told = Object.fromEntries(figures.map(({ metric, change }) => [metric, change && [change.ratio, change.tone]]));
    expect(told.spend).toEqual([1, "neutral"]);
    expect(told.cpc).toEqual([1, "bad"]);
    expect(told.revenue).toEqual([1, "good"]);
    expect(told.roas).toEqual([0, "neutral"]);
  });

  test("from nothing there is none", () => {
    const turn = compared("5m", NOW)!.now.from;
    const figures = frame(
      filled((at) => (at < turn ? 0 : 2)),
      VIEW,
      NOW,
      NOW,
    )!.figures;
    expect(figures.find((figure) => figure.metric === "spend")!.change).toBeUndefined();
  });
});

describe("line", () => {
  test("says which points are final, provisional, and only a part", () => {
    const watermark = NOW - 13_000;
    const states = frame(filled(), VIEW, NOW, watermark)!.line.map((point) => point.state);
    expect(states.slice(-3)).toEqual(["final", "provisional", "partial"]);
    expect(states.slice(0, -2).every((state) => state === "final")).toBe(true);
    expect(frame(filled(), { ...VIEW, metric: "ctr" }, NOW, watermark)!.line.at(-1)!.state).toBe("provisional");
  });

  test("a past that began within the window before has no values in front, rather than zeros", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, NOW - 16 * MINUTE, Infinity);
    const { window } = frame(panes, VIEW, NOW, NOW)!;
    const first = window.from - 2 * MINUTE; // three minutes after the window before began
    for (const at of [first, first + 2 * FINE_MS]) panes.put({ entity: "USD", at, pane_ms: FINE_MS, sums: sums(4) });
    const shown = frame(panes, VIEW, NOW, NOW)!.past.map((point) => [point.from - 5 * MINUTE, point.value] as const);
    expect(shown.filter(([at]) => at < first).every(([, value]) => value === undefined)).toBe(true);
    expect(shown.filter(([at]) => at >= first).slice(0, 4)).toEqual([
      [first, 4e6],
      [first + FINE_MS, 0],
      [first + 2 * FINE_MS, 4e6],
      [first + 3 * FINE_MS, 0],
    ]);
  });

  test("the past lies under the present, at the same scale also where it is known more coarsely", () => {
    const panes = filled();
    panes.cover(MINUTE as Step, NOW - 40 * MINUTE, NOW - 10_000);
    for (let at = Math.floor((NOW - 39 * MINUTE) / MINUTE) * MINUTE; at < NOW - 15 * MINUTE; at += MINUTE)
      panes.put({ entity: "USD", at, pane_ms: MINUTE, sums: sums(24) });
    const { past, window } = frame(panes, { ...VIEW, range: "15m" }, NOW, NOW)!;
    const values = past.filter((point) => point.to <= window.to - MINUTE).map((point) => point.value);
    expect(values.length).toBeGreaterThan(10);
    expect(new Set(values)).toEqual(new Set([4e6]));
  });

  test("a trend leaves out what is not over", () => {
    const trend = trendOf(filled(), VIEW, "USD/x/act/brand", NOW);
    expect(trend).toEqual(Array(29).fill(2e6));
  });
});

describe("entities", () => {
  test("keys are those of the server: quoted as Python's quote does", () => {
    expect(entityKey(["USD", "meta", "act_7", "spring/sale (50%)!"])).toBe("USD/meta/act_7/spring%2Fsale%20%2850%25%29%21");
    expect(parseEntity("USD/meta/act_7/spring%2Fsale%20%2850%25%29%21").campaign).toBe("spring/sale (50%)!");
  });
});
