/** What `GET /api/orgs/{org}/kinds` says of a kind; the server makes it from what modules declare. */

import type { Body } from "./api.ts";
import type { Schema } from "./schema.ts";

export type FilterType = "text" | "number" | "time" | "bool" | "tags";

export interface KindCommand {
  readonly name: string;
  readonly title: string;
  readonly creates: boolean;
  readonly of_deleted: boolean;
  readonly allowed: boolean;
  /** Of the body; null where there is none. */
  readonly schema: Schema | null;
}

export interface Kind {
  readonly name: string;
  /** In the singular. */
  readonly title: string;
  readonly plural: string;
  readonly module: string;
  readonly module_title: string;
  /** Below /api/orgs/{org}/. */
  readonly path: string;
  readonly kind: "document" | "fact";
  readonly description: string;
  readonly natural_key: string | null;
  readonly filters: Readonly<Record<string, FilterType>>;
  readonly sorts: readonly string[];
  readonly default_sort: string;
  /** Field → its values in the order of sorted lists. */
  readonly ranks: Readonly<Record<string, readonly string[]>>;
  readonly unique: readonly (readonly string[])[];
  readonly states: {
    readonly field: string;
    readonly initial: string;
    readonly transitions: readonly (readonly string[])[];
  } | null;
  readonly commands: readonly KindCommand[];
  readonly schema: Schema | null;
  readonly read_schema: Schema;
  readonly refs: Readonly<Record<string, { readonly target: string; readonly on_delete: "restrict" | "cascade" | "detach" }>>;
  readonly visibility: string | null;
  readonly examples: readonly Body[];
  readonly allowed: Readonly<Record<string, boolean>>;
}
