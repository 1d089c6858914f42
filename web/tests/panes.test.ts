import { describe, expect, test } from "vitest";

import { FINE_MS, type Item, Panes, plus, type Step, type Sums, ZERO } from "../src/modules/live/panes.ts";

const MINUTE = 60_000;
const QUARTER = 15 * MINUTE;
const START = 1_800_000_000_000; // a multiple of an hour

function sums(events: number): Sums {
  return [events, events * 100, events * 3, events * 1_000_000, events * 10_000, events * 5_000_000];
}

function item(entity: string, at: number, events: number, step: Step = FINE_MS): Item {
  return { entity, at, pane_ms: step, sums: sums(events) };
}

/** A repeatable source of numbers in [0, 1). */
function dice(seed: number): () => number {
  return () => ((seed = (seed * 48271) % 2147483647) - 1) / 2147483646;
}

describe("values", () => {
  test("a newer value of a pane replaces the older one, it is not added", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, Infinity);
    panes.put(item("USD", START, 3));
    panes.put(item("USD", START, 5));
    expect(panes.of(["USD"], START, START + FINE_MS)).toEqual(sums(5));
  });

  test("an older value that comes late changes nothing and is said to be no news", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, Infinity);
    expect(panes.put(item("USD", START, 5))).toBe(true);
    expect(panes.put(item("USD", START, 3))).toBe(false);
    expect(panes.put(item("USD", START, 5))).toBe(false);
    expect(panes.of(["USD"], START, START + FINE_MS)).toEqual(sums(5));
  });

  test("whatever the order and the repetitions in which values come, the panes are the same", () => {
    for (let seed = 1; seed <= 50; seed++) {
      const roll = dice(seed);
      const told: Item[] = [];
      for (const entity of ["USD", "USD/meta"])
        for (let pane = 0; pane < 4; pane++) {
          let events = 0;
          for (let time = 0; time < 4; time++)
            told.push(item(entity, START + pane * FINE_MS, (events += 1 + Math.floor(roll() * 3))));
        }
      const inOrder = new Panes();
      const shuffled = new Panes();
      for (const panes of [inOrder, shuffled]) panes.cover(FINE_MS, START, Infinity);
      for (const one of told) inOrder.put(one);
      const mixed = [...told, ...told].map((one) => ({ one, at: roll() })).sort((a, b) => a.at - b.at);
      for (const { one } of mixed) shuffled.put(one);
      const end = START + 4 * FINE_MS;
      expect(shuffled.between(START, end)).toEqual(inOrder.between(START, end));
    }
  });

  test("a step that is not kept is not taken", () => {
    expect(new Panes().put({ ...item("USD", START, 1), pane_ms: 5000 })).toBe(false);
  });

  test("the newest data ends with the newest pane that has events", () => {
    const panes = new Panes();
    panes.put(item("USD", START, 1));
    panes.put(item("USD", START + FINE_MS, 0));
    expect(panes.newest).toBe(START + FINE_MS);
  });
});

describe("coverage", () => {
  test("what is covered and was not put is zero; what is not covered is not known", () => {
    const panes = new Panes();
    panes.put(item("USD", START, 1));
    expect(panes.of(["USD"], START, START + FINE_MS)).toBeUndefined();
    panes.cover(FINE_MS, START, START + MINUTE);
    expect(panes.of(["USD"], START + FINE_MS, START + MINUTE)).toEqual(ZERO);
    expect(panes.of(["USD"], START, START + MINUTE)).toEqual(sums(1));
    expect(panes.of(["USD"], START, START + MINUTE + FINE_MS)).toBeUndefined();
  });

  test("a window is made of coarse panes where there are no finer ones, and of finer ones where there are", () => {
    const panes = new Panes();
    panes.cover(QUARTER as Step, START, START + 2 * QUARTER);
    panes.cover(FINE_MS, START + 2 * QUARTER - MINUTE, Infinity);
    panes.put(item("USD", START, 40, QUARTER as Step));
    panes.put(item("USD", START + QUARTER, 60, QUARTER as Step));
    panes.put(item("USD", START + 2 * QUARTER, 2));
    panes.put(item("USD", START + 2 * QUARTER + FINE_MS, 3));
    expect(panes.of(["USD"], START, START + 3 * QUARTER)).toEqual(sums(105));
  });

  test("fine panes are preferred to a coarse one that holds the same time, since late events amend them", () => {
    const panes = new Panes();
    panes.cover(MINUTE as Step, START, START + MINUTE);
    panes.cover(FINE_MS, START, Infinity);
    panes.put(item("USD", START, 6, MINUTE as Step));
    for (let at = START; at < START + MINUTE; at += FINE_MS) panes.put(item("USD", at, 1));
    panes.put(item("USD", START, 2));
    expect(panes.of(["USD"], START, START + MINUTE)).toEqual(sums(7));
  });

  test("a coarse pane does not stand for a part of itself", () => {
    const panes = new Panes();
    panes.cover(MINUTE as Step, START, START + MINUTE);
    expect(panes.of(["USD"], START + FINE_MS, START + MINUTE)).toBeUndefined();
  });

  test("only whole panes are covered", () => {
    const panes = new Panes();
    panes.cover(MINUTE as Step, START + 1, START + 3 * MINUTE - 1);
    expect(panes.covers(START + MINUTE, START + 2 * MINUTE)).toBe(true);
    expect(panes.covers(START, START + MINUTE)).toBe(false);
    expect(panes.covers(START + 2 * MINUTE, START + 3 * MINUTE)).toBe(false);
  });

  test("after an interruption nothing behind the pane of then is known, until it is asked for anew", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, Infinity);
    panes.put(item("USD", START, 1));
    panes.interrupted(START + 12_000);
    expect(panes.covers(START, START + 2 * FINE_MS)).toBe(true);
    expect(panes.covers(START, START + 3 * FINE_MS)).toBe(false);
    panes.put(item("USD", START + 3 * FINE_MS, 4));
    panes.cover(FINE_MS, START + FINE_MS, Infinity);
    expect(panes.of(["USD"], START, START + 4 * FINE_MS)).toEqual(sums(5));
  });

  test("an answer that leaves a hole to what was covered replaces it", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, START + MINUTE);
    panes.cover(FINE_MS, START + 5 * MINUTE, Infinity);
    expect(panes.covers(START, START + MINUTE)).toBe(false);
    expect(panes.covers(START + 5 * MINUTE, START + 6 * MINUTE)).toBe(true);
  });
});

describe("sums of windows", () => {
  test("are told by entity and follow every later put, although they are kept", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, Infinity);
    panes.put(item("USD/meta/a/one", START, 1));
    panes.put(item("USD/meta/a/two", START + FINE_MS, 2));
    expect(panes.between(START, START + MINUTE)).toEqual(
      new Map([
        ["USD/meta/a/one", sums(1)],
        ["USD/meta/a/two", sums(2)],
      ]),
    );
    panes.put(item("USD/meta/a/one", START + 2 * FINE_MS, 4));
    panes.put(item("USD/meta/a/two", START + MINUTE, 9));
    expect(panes.between(START, START + MINUTE)).toEqual(
      new Map([
        ["USD/meta/a/one", sums(5)],
        ["USD/meta/a/two", sums(2)],
      ]),
    );
  });

  test("are, for many entities, those of each added up", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, Infinity);
    panes.put(item("USD/meta", START, 1));
    panes.put(item("USD/x", START, 2));
    expect(panes.of(["USD/meta", "USD/x", "USD/none"], START, START + FINE_MS)).toEqual(plus(sums(1), sums(2)));
  });

  test("what no window reaches is let go, and not taken for zero then", () => {
    const panes = new Panes();
    panes.cover(FINE_MS, START, Infinity);
    panes.put(item("USD", START, 1));
    panes.prune(START + 60 * MINUTE);
    expect(panes.of(["USD"], START, START + FINE_MS)).toBeUndefined();
    expect(panes.entities().size).toBe(0);
    expect(panes.covers(START + 50 * MINUTE, START + 60 * MINUTE)).toBe(true);
  });
});
