import { describe, expect, test } from "vitest";

import type { Body, Item } from "../src/data/api.ts";
import type { Kind } from "../src/data/kinds.ts";
import type { Schema } from "../src/data/schema.ts";
import { copyOf, templateBody, templateIn } from "../src/modules/documents/begin.ts";
import { listFields } from "../src/modules/documents/columns.ts";
import { bodyOf, conflictsOf, draftOf, errorsOf, rebased } from "../src/modules/documents/draft.ts";
import { fieldsOf, labelOf, nameField } from "../src/modules/documents/fields.ts";
import { chosenOf, listingOf, parametersOf, questionOf, withFilter } from "../src/modules/documents/listing.ts";
import { changedFields, shortTextOf, textOf } from "../src/modules/documents/values.ts";

const SCHEMA: Schema = {
  type: "object",
  required: ["name", "slug", "when"],
  properties: {
    name: { type: "string", title: "Name", maxLength: 100 },
    slug: { type: "string" },
    notes: { anyOf: [{ type: "string", maxLength: 5000 }, { type: "null" }], default: null },
    state: { type: "string", enum: ["new", "used"], default: "new" },
    severity: { enum: ["critical", "high", "medium", "low"], type: "string", default: "medium" },
    price_micros: { anyOf: [{ type: "integer" }, { type: "null" }], default: null },
    weight: { type: "number", default: 1 },
    loud: { anyOf: [{ type: "boolean" }, { type: "null" }], default: null },
    enabled: { type: "boolean", default: true },
    made_at: { anyOf: [{ type: "string", format: "date-time" }, { type: "null" }], default: null },
    box: { anyOf: [{ type: "string" }, { type: "null" }], default: null, description: "Where it lies. Id of a box." },
    friends: { type: "array", items: { type: "string" }, default: [] },
    sizes: { type: "array", items: { type: "integer" }, default: [] },
    days: { type: "array", items: { $ref: "#/$defs/Day" }, default: [] },
    when: { anyOf: [{ $ref: "#/$defs/A" }, { $ref: "#/$defs/B" }] },
    parts: { type: "array", items: { $ref: "#/$defs/A" }, default: [] },
    tags: { type: "array", items: { type: "string" }, default: [] },
    metadata: { type: "object", default: {} },
  },
  $defs: {
    Day: { type: "string", enum: ["monday", "sunday"] },
    A: { type: "object", properties: { x: { type: "integer" } } },
    B: { type: "object", properties: { all: { type: "array", items: { $ref: "#/$defs/B" } } } },
  },
};
const REFS = { box: { target: "box", on_delete: "detach" }, friends: { target: "toy", on_delete: "detach" } } as const;
const KIND: Kind = {
  name: "toy",
  title: "Toy",
  plural: "toys",
  module: "toy",
  module_title: "Toys",
  path: "toy/toys",
  kind: "document",
  description: "",
  natural_key: "slug",
  filters: {
    id: "text",
    created_at: "time",
    updated_at: "time",
    tags: "tags",
    slug: "text",
    made_at: "time",
    price_micros: "number",
    state: "text",
    severity: "text",
    name: "text",
  },
  sorts: ["id", "created_at", "updated_at", "price_micros", "name"],
  default_sort: "-id",
  ranks: {},
  unique: [["slug"]],
  states: { field: "state", initial: "new", transitions: [["new", "used"]] },
  commands: [],
  schema: SCHEMA,
  read_schema: {
    ...SCHEMA,
    properties: {
      id: { type: "string" },
      created_at: { type: "string", format: "date-time" },
      updated_at: { type: "string", format: "date-time" },
      ...SCHEMA.properties,
    },
  },
  refs: REFS,
  visibility: null,
  examples: [],
  templates: [
    { name: "train", title: "A train", description: "On rails.", body: { name: "Train", slug: "train", weight: 3 } },
    { name: "ball", title: "A ball", description: "", body: { name: "Ball" } },
  ],
  allowed: {},
};
const fields = fieldsOf(SCHEMA, REFS);
const field = (name: string) => fields.find((one) => one.name === name)!;

describe("fields of a schema", () => {
  test("each has the control that fits its type", () => {
    expect(Object.fromEntries(fields.map(({ name, type }) => [name, type]))).toEqual({
      name: "text",
      slug: "text",
      notes: "long",
      state: "choice",
      severity: "severity",
      price_micros: "number",
      weight: "number",
      loud: "bool",
      enabled: "bool",
      made_at: "time",
      box: "ref",
      friends: "refs",
      sizes: "numbers",
      days: "choices",
      when: "json",
      parts: "json",
      tags: "texts",
      metadata: "json",
    });
    expect(field("days").options).toEqual(["monday", "sunday"]);
    expect([field("price_micros").whole, field("weight").whole, field("sizes").whole]).toEqual([true, false, true]);
    expect(field("box")).toMatchObject({ target: "box", nullable: true, required: false, hint: "Where it lies." });
  });

  test("labels leave out what values show", () => {
    expect(["price_micros", "made_at", "owner_id", "cpc", "max_cpc", "s"].map(labelOf)).toEqual([
      "Price",
      "Made",
      "Owner",
      "CPC",
      "Max CPC",
      "S",
    ]);
  });

  test("a thing is called by its name, else by its key, else by a text that lists are filtered by", () => {
    expect(nameField(KIND)).toBe("name");
    const { name: _, ...others } = KIND.read_schema.properties!;
    expect(nameField({ ...KIND, read_schema: { properties: others } })).toBe("slug");
    const fact = { properties: { key: { type: "string" }, rule: { type: "string" } } };
    const filters = { key: "text", rule: "text" } as const;
    expect(nameField({ ...KIND, natural_key: null, read_schema: fact, filters })).toBe("rule");
    expect(nameField({ ...KIND, natural_key: null, read_schema: fact, filters: {} })).toBe("");
  });
});

describe("columns of a list", () => {
  const shown = (items: Item[]) =>
    listFields(KIND, items)
      .filter(({ extra }) => !extra)
      .map(({ field }) => field.name);

  test("name, state and severity first, then numbers, then times", () => {
    expect(shown([])).toEqual(["name", "state", "severity", "price_micros", "made_at", "tags", "updated_at"]);
  });

  test("what no row has is left out until it is chosen", () => {
    const item = {
      id: "1",
      version: 1,
      name: "a",
      state: "new",
      severity: "low",
      price_micros: null,
      tags: [],
      updated_at: "2026",
    };
    expect(shown([item])).toEqual(["name", "state", "severity", "updated_at"]);
  });
});

describe("what a list is asked for", () => {
  const query = new URLSearchParams(
    "filter[name][contains]=a b&filter[state]=new&filter[nothing]=1&sort=-name&tz=UTC&deleted=all",
  );
  const listing = listingOf(query, KIND.filters);

  test("is what the address says, without what there is not", () => {
    expect(listing).toEqual({
      filters: [
        { field: "name", op: "contains", value: "a b" },
        { field: "state", op: "eq", value: "new" },
      ],
      sort: "-name",
      deleted: "",
      cursor: "",
      page: 1,
    });
    expect(questionOf(listing).toString()).toBe(
      "filter%5Bname%5D%5Bcontains%5D=a+b&filter%5Bstate%5D%5Beq%5D=new&sort=-name&limit=50",
    );
  });

  test("another filter begins at the first page and leaves nothing of the old one", () => {
    const filters = withFilter(listing.filters, "state", "eq", "");
    expect(parametersOf(listing, { filters })).toEqual({
      cursor: "",
      page: "",
      "filter[name][contains]": "a b",
      "filter[state][eq]": "",
      "filter[state]": "",
    });
  });

  test("several of a vocabulary are one filter", () => {
    expect(chosenOf([{ field: "state", op: "in", value: "new,used" }], "state")).toEqual(["new", "used"]);
  });
});

describe("a draft", () => {
  const made = (changed: Record<string, never> | object) => {
    const before = draftOf(fields, {}, "UTC");
    return bodyOf(fields, { ...before, name: "Train", slug: "train", when: '{"x": 1}', ...changed } as never, before, {}, "UTC");
  };

  test("means the body that is sent; what is left empty is null or its default", () => {
    const [body, errors] = made({ price_micros: " 12 ", loud: "false", made_at: "2026-01-01T12:00", sizes: ["1", "2"] });
    expect(errors).toEqual({});
    expect(body).toEqual({
      name: "Train",
      slug: "train",
      notes: null,
      state: "new",
      severity: "medium",
      price_micros: 12,
      weight: 1,
      loud: false,
      enabled: true,
      made_at: "2026-01-01T12:00:00.000Z",
      box: null,
      friends: [],
      sizes: [1, 2],
      days: [],
      when: { x: 1 },
      parts: [],
      tags: [],
      metadata: {},
    });
  });

  test("says at each field what cannot be meant", () => {
    const [, errors] = made({ name: "", price_micros: "1.5", weight: "heavy", when: "{", made_at: "yesterday", sizes: ["x"] });
    expect(Object.keys(errors).sort()).toEqual(["made_at", "name", "price_micros", "sizes", "weight", "when"]);
  });

  test("leaves exactly as it was what was not touched: also what a control cannot hold", () => {
    const base = { name: "a", slug: "a", made_at: "2026-01-01T00:00:00.123Z", when: { x: null }, price_micros: 5 };
    const before = draftOf(fields, base, "Europe/Berlin");
    const [body] = bodyOf(fields, { ...before, name: "b" }, before, base, "Europe/Berlin");
    expect(body).toMatchObject({ ...base, name: "b" });
  });

  test("goes on top of what somebody else saved, where it was changed", () => {
    const [base, theirs] = [
      { name: "a", weight: 1, state: "new" },
      { name: "b", weight: 2, state: "new" },
    ];
    const before = draftOf(fields, base, "UTC");
    const mine = { ...before, name: "c", state: "used" };
    expect(rebased(fields, mine, before, draftOf(fields, theirs, "UTC"))).toMatchObject({
      name: "c",
      weight: "2",
      state: "used",
    });
    const [body] = bodyOf(fields, mine, before, base, "UTC");
    expect(conflictsOf(fields, base, theirs, body).map(({ field: { name }, both }) => [name, both])).toEqual([
      ["name", true],
      ["weight", false],
    ]);
  });
});

describe("what a new document begins with", () => {
  const source: Body = {
    id: "7",
    version: 3,
    created_at: "2026-01-01T00:00:00Z",
    name: "Train",
    slug: "train",
    state: "used",
    box: "9",
    made_at: "2026-01-01T00:00:00.123Z",
    tags: ["red"],
    metadata: { applied_from: "shop", team: "growth" },
  };

  test("a copy has what may be the same twice, and none of what only this one is", () => {
    expect(copyOf(KIND, source)).toEqual({
      name: "Train",
      box: "9",
      made_at: "2026-01-01T00:00:00.123Z",
      tags: ["red"],
      metadata: { team: "growth" },
    });
    expect(source.metadata).toEqual({ applied_from: "shop", team: "growth" });
  });

  test("of fields that are unique together, what a reference points at stays, unless there is nothing else", () => {
    expect(copyOf({ ...KIND, unique: [["box", "name"]] }, source)).toMatchObject({ box: "9", slug: "train" });
    expect(copyOf({ ...KIND, unique: [["box", "name"]] }, source)).not.toHaveProperty("name");
    expect(copyOf({ ...KIND, unique: [["box"]] }, source)).not.toHaveProperty("box");
  });

  test("a copy's form asks for what has to differ, and sends the rest exactly as it was", () => {
    const origin = copyOf(KIND, { ...source, when: { x: null } });
    const before = draftOf(fields, origin, "Europe/Berlin");
    expect([before.slug, before.state]).toEqual(["", "new"]);
    expect(bodyOf(fields, before, before, origin, "Europe/Berlin")[1]).toEqual({ slug: ["This is needed"] });
    const [body, errors] = bodyOf(fields, { ...before, slug: "other" }, before, origin, "Europe/Berlin");
    expect(errors).toEqual({});
    expect(body).toMatchObject({ slug: "other", state: "new", when: { x: null }, made_at: "2026-01-01T00:00:00.123Z" });
  });

  test("a template is the one that the address names, and none where it names none of them", () => {
    const named = (search: string) => templateIn(new URLSearchParams(search), KIND);
    expect(["template=ball&tz=UTC", "template=nothing", ""].map(named)).toEqual(["ball", "", ""]);
    expect(templateBody(KIND, "train")).toEqual({ name: "Train", slug: "train", weight: 3 });
    expect(templateBody(KIND, "")).toEqual({});
  });
});

test("errors of the server stand at the fields that their pointers name", () => {
  const errors = [
    { pointer: "/name", code: "too_long", expected: "at most 5 characters" },
    { pointer: "/when/all/0/a~1b", code: "missing" },
    { pointer: "/nothing", code: "invalid", expected: "no such field" },
    { pointer: "", code: "too_long", expected: "less" },
  ];
  expect(errorsOf(errors, fields)).toEqual({
    name: ["Expected at most 5 characters"],
    when: ["all › 0 › a/b: missing"],
    "": ["/nothing: Expected no such field", "Expected less"],
  });
});

describe("values in words", () => {
  const context = { zone: "UTC", nameOf: (kind: string, id: string) => (kind === "box" && id === "7" ? "Attic" : undefined) };

  test.each([
    ["price_micros", 12_500_000, "12.50"],
    ["weight", 0.125, "0.125"],
    ["loud", false, "No"],
    ["state", "new", "New"],
    ["made_at", "2026-01-01T12:00:00Z", "1 Jan 2026, 12:00:00"],
    ["box", "7", "Attic"],
    ["box", "019b76da-a800-71d6-a2ec-7216849ac021", "…849ac021"],
    ["days", ["monday", "sunday"], "Monday, Sunday"],
    ["sizes", [1, 2, 3, 4, 5, 6, 7], "1, 2, 3, 4, 5 and 2 more"],
    ["notes", null, "–"],
    ["parts", [], "–"],
  ])("%s %j", (name, value, text) => expect(shortTextOf(field(name), value as never, context)).toBe(text));

  test("JSON leaves out what is null, but of what is kept as it was given", () => {
    expect(textOf(field("when"), { x: null, y: 1 }, context)).toBe('{\n  "y": 1\n}');
    expect(textOf(field("metadata"), { x: null }, context)).toBe('{\n  "x": null\n}');
  });

  test("changes are told by field, whatever the order of members", () => {
    expect(changedFields({ a: { x: 1, y: 2 }, b: 1 }, { a: { y: 2, x: 1 }, b: 2, c: 3 })).toEqual(["b", "c"]);
  });
});
