/** What `GET /api/orgs/{org}/kinds` says of a kind, with its JSON schemas as pages look at them. */

import type { Body } from "./api.ts";
import type { KindList } from "./contract.ts";
import type { Schema } from "./schema.ts";

type Told = KindList["items"][number];

export type FilterType = Told["filters"][string];

export type KindCommand = Omit<Told["commands"][number], "schema"> & {
  /** Of the body; null where there is none. */
  readonly schema: Schema | null;
};

/** What a new one can begin with. */
export type Template = Omit<Told["templates"][number], "body"> & { readonly body: Body };

export type Kind = Omit<Told, "commands" | "schema" | "read_schema" | "examples" | "templates"> & {
  readonly commands: readonly KindCommand[];
  readonly schema: Schema | null;
  readonly read_schema: Schema;
  readonly examples: readonly Body[];
  readonly templates: readonly Template[];
};
