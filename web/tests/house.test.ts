/** Rules of the house that a compiler does not hold. */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";

const SRC = join(import.meta.dirname, "..", "src");
const files = (folder: string) =>
  readdirSync(join(SRC, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => /\.(svelte|ts|css)$/.test(name))
    .map((name) => ({ name: join(folder, name), text: readFileSync(join(SRC, folder, name), "utf8") }));

describe("modules contain no colours, pixels or fetch", () => {
  test.each(files("modules"))("$name", ({ text }) => {
    expect(text.match(/<style|style=|style:|#[0-9a-f]{3,8}\b|\brgba?\(|\d(px|rem)\b|\bfetch\(/gi) ?? []).toEqual([]);
  });
});

describe("only the tokens name colours", () => {
  test.each(files("ui").filter(({ name }) => name.endsWith(".svelte")))("$name", ({ text }) => {
    expect(text.match(/#[0-9a-f]{6}\b|:\s*#[0-9a-f]{3}\b/gi) ?? []).toEqual([]);
  });
});

test("the page calls the server in one place only", () => {
  const calling = [...files("app"), ...files("data"), ...files("ui"), ...files("modules")].filter(({ text }) =>
    /\bfetch\(|new WebSocket|XMLHttpRequest/.test(text),
  );
  expect(calling.map(({ name }) => name)).toEqual([join("data", "api.ts")]);
});
