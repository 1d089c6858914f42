import { describe, expect, test } from "vitest";

import {
  choicesOf,
  documentsPath,
  isAt,
  ownPath,
  pagePath,
  parametersOf,
  placeOf,
  withParameters,
  type Choices,
  type Collection,
} from "../src/app/address.ts";

describe("places", () => {
  test.each([
    ["/", { kind: "home" }],
    ["/sign-in", { kind: "sign_in" }],
    ["/gallery/", { kind: "gallery" }],
    ["/orgs/acme/live", { kind: "page", org: "acme", page: "live" }],
    ["/orgs/acme", { kind: "page", org: "acme", page: "" }],
    ["/orgs/a%2Fb/live", { kind: "page", org: "a/b", page: "live" }],
    ["/orgs/100%/live", { kind: "page", org: "100%", page: "live" }],
    ["/orgs/acme/toy/my-toys", { kind: "documents", org: "acme", module: "toy", plural: "my-toys", view: { of: "list" } }],
    ["/orgs/acme/toy/toys/new", { kind: "documents", org: "acme", module: "toy", plural: "toys", view: { of: "new" } }],
    [
      "/orgs/acme/toy/toys/a%2Fb",
      { kind: "documents", org: "acme", module: "toy", plural: "toys", view: { of: "one", id: "a/b" } },
    ],
    [
      "/orgs/acme/toy/toys/7/edit",
      { kind: "documents", org: "acme", module: "toy", plural: "toys", view: { of: "edit", id: "7" } },
    ],
    ["/orgs/acme/toy/toys/7/else", { kind: "nowhere" }],
    ["/orgs/acme/toy/toys/7/edit/more", { kind: "nowhere" }],
    ["/else", { kind: "nowhere" }],
  ])("%s", (path, place) => expect(placeOf(path)).toEqual(place));

  test("a path leads to the place that made it", () => {
    expect(placeOf(pagePath("a/b c", "live"))).toEqual({ kind: "page", org: "a/b c", page: "live" });
  });
});

test("a collection's address leads to it, with _ as -", () => {
  const kind = { module: "ad_tests", plural: "big_tests" };
  const path = documentsPath("a/b", kind, "7", "edit");
  expect(path).toBe("/orgs/a%2Fb/ad-tests/big-tests/7/edit");
  const place = placeOf(path);
  expect(place).toMatchObject({ org: "a/b", view: { of: "edit", id: "7" } });
  expect(isAt(place as unknown as Collection, kind)).toBe(true);
  expect(isAt(place as unknown as Collection, { ...kind, plural: "tests" })).toBe(false);
});

describe("choices", () => {
  test("what the address says is what was chosen", () => {
    const chosen: Choices = {
      range: "6h",
      zone: "Europe/Berlin",
      platforms: ["meta", "x"],
      campaign: "spring & fall",
      currency: "EUR",
    };
    const search = withParameters("", parametersOf(chosen));
    expect(choicesOf(new URLSearchParams(search))).toEqual(chosen);
    expect(search).toBe("?range=6h&tz=Europe/Berlin&platform=meta,x&q=spring+%26+fall&currency=EUR");
  });

  test("defaults are not said, and others' parameters stay", () => {
    const chosen = choicesOf(new URLSearchParams(""));
    expect(withParameters("?metric=ctr&range=6h", parametersOf(chosen))).toBe("?metric=ctr");
  });

  test("nonsense is the default", () => {
    const chosen = choicesOf(new URLSearchParams("range=9y&tz=Mars/Base&currency=<b>&platform=,,"));
    expect(chosen).toEqual(choicesOf(new URLSearchParams("")));
  });
});

describe("where signing in leads", () => {
  test.each([
    ["/orgs/acme/live?range=1h", "/orgs/acme/live?range=1h"],
    ["//evil.example", "/"],
    ["/\\evil.example", "/"],
    ["https://evil.example", "/"],
    ["/sign-in", "/"],
    [null, "/"],
  ])("%s leads to %s", (wanted, path) => expect(ownPath(wanted)).toBe(path));
});
