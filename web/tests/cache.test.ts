import { expect, test } from "vitest";

import { Cache } from "../src/data/cache.ts";

test("an answer is asked for once while it is young, however many want it", async () => {
  let now = 0;
  let asked = 0;
  const cache = new Cache(() => now);
  const ask = () => Promise.resolve(++asked);
  expect(await Promise.all([cache.get("a", 100, ask), cache.get("a", 100, ask)])).toEqual([1, 1]);
  now = 100;
  expect(await cache.get("a", 100, ask)).toBe(2);
});

test("a failure is not kept", async () => {
  const cache = new Cache(() => 0);
  await expect(cache.get("a", 100, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(await cache.get("a", 100, () => Promise.resolve("yes"))).toBe("yes");
});

test("what is forgotten is asked for anew, others stay", async () => {
  const cache = new Cache(() => 0);
  const answer = (text: string) => () => Promise.resolve(text);
  await cache.get("acme one", 100, answer("old"));
  await cache.get("globex one", 100, answer("old"));
  cache.forget("acme");
  expect(await cache.get("acme one", 100, answer("new"))).toBe("new");
  expect(await cache.get("globex one", 100, answer("new"))).toBe("old");
});
