import { describe, expect, test } from "vitest";

import {
  amount,
  bytes,
  changed,
  decimal,
  duration,
  fromLocal,
  offsetMinutes,
  tick,
  time,
  timeTicks,
  toLocal,
  value,
} from "../src/format.ts";

const HOUR = 3_600_000;

describe("values", () => {
  test("money is in its currency, with its own number of digits", () => {
    expect(value(1_234_560_000, "money", { currency: "USD" })).toBe("$1,234.56");
    expect(value(1_234_560_000, "money", { currency: "EUR" })).toBe("€1,234.56");
    expect(value(1_234_000_000, "money", { currency: "JPY" })).toBe("¥1,234");
  });

  test("a code that is none is written as it is", () => {
    expect(value(1_500_000, "money", { currency: "credits" })).toBe("1.5 credits");
  });

  test("figures have few digits, tables all that count", () => {
    expect(value(12_345_670_000, "money", { currency: "USD", short: true })).toBe("$12,346");
    expect(value(1_234_567_890_000, "money", { currency: "USD", short: true })).toBe("$1.235M");
    expect(value(1_234_567_890_000, "money", { currency: "USD" })).toBe("$1,234,567.89");
    expect(value(1_234_567_890_000, "money", { currency: "USD", whole: true })).toBe("$1,234,568");
    expect(value(12_345_678, "count", { short: true })).toBe("12.35M");
  });

  test("the price of one thing shows what cents would hide", () => {
    expect(value(203_400, "unit_money", { currency: "USD" })).toBe("$0.203");
    expect(value(45_678_900, "unit_money", { currency: "USD" })).toBe("$45.68");
  });

  test("ratios", () => {
    expect(value(0.02034, "percent")).toBe("2.03%");
    expect(value(7.485, "factor")).toBe("7.49×");
  });

  test("what has no value is a dash", () => {
    expect(value(undefined, "money", { currency: "USD" })).toBe("–");
    expect(value(Infinity, "factor")).toBe("–");
    expect(changed(undefined)).toBe("–");
    expect(time.full(NaN, "UTC")).toBe("–");
  });
});

describe("changes", () => {
  test.each([
    [0.1239, "+12.4%"],
    [-0.05, "−5.0%"],
    [0, "0.0%"],
    [9, "+900.0%"],
    [23, "24×"],
  ])("%d is %s", (ratio, text) => expect(changed(ratio)).toBe(text));
});

describe("axes", () => {
  test("ticks have the digits that tell them apart", () => {
    expect(tick(50_000_000, "money", "USD", 50_000_000)).toBe("$50");
    expect(tick(250_000, "unit_money", "USD", 50_000)).toBe("$0.25");
    expect(tick(0.0195, "percent", "", 0.0005)).toBe("1.95%");
    expect(tick(20_000, "count", "", 10_000)).toBe("20K");
  });

  test("times are round on the zone's clock, also where it is half an hour off", () => {
    const from = Date.UTC(2026, 0, 5, 11, 7);
    const ticks = timeTicks(from, from + HOUR, "Asia/Kolkata", 6);
    expect(ticks.map((at) => time.minute(at, "Asia/Kolkata"))).toEqual(["16:40", "16:50", "17:00", "17:10", "17:20", "17:30"]);
    expect(offsetMinutes("Asia/Kolkata", from)).toBe(330);
  });

  test("days begin at the zone's midnight, also after the clocks change", () => {
    const from = Date.UTC(2026, 2, 26, 12); // in Berlin summer time begins on the 29th
    const ticks = timeTicks(from, from + 7 * 24 * HOUR, "Europe/Berlin", 8);
    expect(ticks.map((at) => time.minute(at, "Europe/Berlin"))).toEqual(Array(7).fill("00:00"));
    expect(ticks.map((at) => time.day(at, "Europe/Berlin"))[0]).toBe("27 Mar");
  });
});

describe("durations", () => {
  test.each([
    [900, "0 s"],
    [59_999, "59 s"],
    [60_000, "1 min"],
    [2 * HOUR + 300_000, "2 h 5 min"],
    [2 * HOUR, "2 h"],
    [76 * HOUR, "3 d 4 h"],
    [-5, "0 s"],
  ])("%d ms is %s", (ms, text) => expect(duration(ms)).toBe(text));
});

describe("local times of a form", () => {
  test.each([
    ["2026-07-01T12:00:00", "Europe/Berlin", "2026-07-01T10:00:00.000Z"],
    ["2026-01-01T12:00", "Europe/Berlin", "2026-01-01T11:00:00.000Z"],
    ["2026-01-01T00:30:15", "America/New_York", "2026-01-01T05:30:15.000Z"],
    ["2026-10-25T02:30:00", "Europe/Berlin", "2026-10-25T00:30:00.000Z"], // exists twice: the first
    ["2026-03-29T02:30:00", "Europe/Berlin", "2026-03-29T01:30:00.000Z"], // does not exist: as before the gap
  ])("%s in %s", (local, zone, moment) => {
    expect(new Date(fromLocal(local, zone)!).toISOString()).toBe(moment);
  });

  test("what is no time is none", () => {
    for (const text of ["", "soon", "2026-13-01T00:00"]) expect(fromLocal(text, "UTC")).toBeUndefined();
    expect(toLocal(Number.NaN, "UTC")).toBe("");
  });

  test("go round", () => {
    const at = Date.UTC(2026, 5, 1, 12, 34, 56);
    for (const zone of ["UTC", "Asia/Kolkata", "Europe/Berlin"]) expect(fromLocal(toLocal(at, zone), zone)).toBe(at);
  });
});

test("numbers of any kind keep their digits", () => {
  expect([amount(1234.5678), amount(0.000001), decimal(12), decimal(0.0125), bytes(1500), bytes(12)]).toEqual([
    "1,234.5678",
    "0.000001",
    "12.00",
    "0.0125",
    "1.5 kB",
    "12 B",
  ]);
});
