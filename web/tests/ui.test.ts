import { describe, expect, test } from "vitest";

import { shownColumns } from "../src/ui/columns.ts";
import { held, sorted, sortedBy } from "../src/ui/order.ts";
import { scaleOf } from "../src/ui/scale.ts";
import { severityRank } from "../src/ui/severity.ts";

const rows = (...values: [string, number | undefined][]) => values.map(([id, value]) => ({ id, value }));
const ids = (list: { id: string }[]) => list.map((row) => row.id).join("");

describe("order of rows", () => {
  test("equal ones keep one order in both directions, and what has no value comes last in both", () => {
    const list = rows(["c", 1], ["x", undefined], ["b", 1], ["a", 2]);
    expect(ids(sorted(list, (row) => row.value, true))).toBe("abcx");
    expect(ids(sorted(list, (row) => row.value, false))).toBe("bcax");
  });

  test("names are sorted as people count", () => {
    expect(ids(sorted([{ id: "10" }, { id: "9" }], (row) => row.id, false))).toBe("910");
  });

  test("while it is held, rows stay where they are with their new values", () => {
    const now = rows(["c", 9], ["a", 2], ["b", 1]);
    expect(held(now, ["a", "b", "c"])).toEqual(rows(["a", 2], ["b", 1], ["c", 9]));
  });

  test("a new row comes behind the one that it follows, and a row that is gone is left out", () => {
    expect(ids(held(rows(["c", 9], ["n", 5], ["a", 2]), ["a", "b", "c"]))).toBe("acn");
    expect(ids(held(rows(["n", 10], ["c", 9], ["a", 2]), ["a", "c"]))).toBe("nac");
  });

  test("a second click turns the direction; numbers begin with the largest, names with the first", () => {
    expect(sortedBy("-spend", "spend", true)).toBe("spend");
    expect(sortedBy("spend", "clicks", true)).toBe("-clicks");
    expect(sortedBy("spend", "name", false)).toBe("name");
  });
});

describe("columns", () => {
  const columns = [{ id: "name", fixed: true }, { id: "spend" }, { id: "cpm", extra: true }];

  test("until something is chosen, the extra ones are left out", () => {
    expect(shownColumns(columns, undefined).map((column) => column.id)).toEqual(["name", "spend"]);
  });

  test("a fixed one cannot be left out", () => {
    expect(shownColumns(columns, ["cpm"]).map((column) => column.id)).toEqual(["name", "cpm"]);
  });
});

describe("scale", () => {
  test("holds all values with round steps", () => {
    expect(scaleOf([3, 147, undefined], 4, true)).toEqual({ min: 0, max: 150, step: 50 });
    const narrow = scaleOf([0.0191, 0.0204], 4, false);
    expect(narrow.min).toBeLessThanOrEqual(0.0191);
    expect(narrow.max).toBeGreaterThanOrEqual(0.0204);
    expect(narrow.min).toBeGreaterThan(0.018);
  });

  test("has a height also where all values are the same, or there are none", () => {
    for (const values of [[], [0], [5, 5], [undefined]]) {
      const { min, max, step } = scaleOf(values, 4, true);
      expect(max).toBeGreaterThan(min);
      expect(step).toBeGreaterThan(0);
    }
  });
});

test("severities are in the order critical, high, medium, low", () => {
  expect((["low", "critical", "medium", "high"] as const).toSorted((a, b) => severityRank(a) - severityRank(b))).toEqual([
    "critical",
    "high",
    "medium",
    "low",
  ]);
});
