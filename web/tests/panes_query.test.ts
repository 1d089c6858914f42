import { describe, expect, test } from "vitest";

import { Problem } from "../src/data/api.ts";
import type { PanesQuery, QueryResult } from "../src/data/contract.ts";
import { panesSince } from "../src/modules/live/panes_query.ts";
import { FINE_MS } from "../src/modules/live/panes.ts";

const START = 1_800_000_000_000;
const MINUTE = 60_000;

const NAMES = [
  "time",
  "currency",
  "platform",
  "account",
  "campaign",
  "events",
  "impressions",
  "clicks",
  "spend_micros",
  "conversions_micros",
  "revenue_micros",
];

function answer(rows: (string | number)[][], query?: PanesQuery): QueryResult {
  const iso = new Date(START).toISOString();
  return {
    columns: NAMES.map((name) => ({ name, type: "string", unit: null })),
    rows,
    watermark: iso,
    provisional: true,
    position: {},
    from: query?.from ?? iso,
    to: iso,
    step: "10s",
  };
}

const row = (at: number, platform: string, campaign: string, events = 1): (string | number)[] => [
  new Date(at).toISOString(),
  "USD",
  platform,
  campaign === "" ? "" : "act/1",
  campaign,
  events,
  100,
  3,
  2_000_000,
  0,
  0,
];

describe("rows", () => {
  test("become panes of campaigns, and add up to those of platforms and the org, with what has no campaign", async () => {
    const rows = [
      row(START, "meta", "spring", 2),
      row(START, "meta", "fall"),
      row(START, "meta", ""),
      row(START, "", ""),
      row(START + FINE_MS, "x", "a"),
    ];
    const { items } = await panesSince({ step: FINE_MS, from: START }, START, async () => answer(rows));
    const events = Object.fromEntries(items.map((item) => [`${item.entity} ${(item.at - START) / FINE_MS}`, item.sums[0]]));
    expect(events).toEqual({
      "USD 0": 5,
      "USD/meta 0": 4,
      "USD/meta/act%2F1/spring 0": 2,
      "USD/meta/act%2F1/fall 0": 1,
      "USD 1": 1,
      "USD/x 1": 1,
      "USD/x/act%2F1/a 1": 1,
    });
  });

  test("an answer without a column that is needed is refused by its name", async () => {
    const without = { ...answer([]), columns: NAMES.slice(0, -1).map((name) => ({ name, type: "string" as const, unit: null })) };
    await expect(panesSince({ step: FINE_MS, from: START }, START, async () => without)).rejects.toThrow("revenue_micros");
  });
});

describe("long answers", () => {
  const problem = (code: string) => new Problem(422, code, code, "", "");

  test("are asked for in parts that leave nothing out and overlap nowhere", async () => {
    const now = START + 15 * MINUTE;
    const asked: [number, number][] = [];
    const { items, from } = await panesSince({ step: FINE_MS, from: START }, now, async (query) => {
      const [begin, end] = [Date.parse(query.from ?? ""), query.to === "now" ? now : Date.parse(query.to ?? "")];
      if (end - begin > 4 * MINUTE) throw problem("too_many_rows");
      asked.push([begin, end]);
      const rows = [];
      for (let at = begin; at < end; at += FINE_MS) rows.push(row(at, "meta", "c"));
      return answer(rows, query);
    });
    expect(from).toBe(START);
    expect(items.filter((item) => item.entity === "USD").map((item) => item.at)).toEqual(
      Array.from({ length: 90 }, (_, place) => START + place * FINE_MS),
    );
    expect(asked[0]![0]).toBe(START);
    asked.slice(1).forEach(([begin], place) => expect(begin).toBe(asked[place]![1]));
  });

  test("that are too long in any part are an error", async () => {
    await expect(
      panesSince({ step: FINE_MS, from: START }, START + MINUTE, () => Promise.reject(problem("too_many_rows"))),
    ).rejects.toThrow("too_many_rows");
  });

  test("what is no longer kept, since a sender's clock is ahead, is left out", async () => {
    const { from } = await panesSince({ step: FINE_MS, from: START }, START + 15 * MINUTE, async (query) => {
      if (Date.parse(query.from ?? "") < START + MINUTE) throw problem("not_kept");
      return answer([], query);
    });
    expect(from).toBe(START + MINUTE);
  });

  test("other errors are told as they are", async () => {
    await expect(panesSince({ step: FINE_MS, from: START }, START, () => Promise.reject(problem("unavailable")))).rejects.toThrow(
      "unavailable",
    );
  });
});
