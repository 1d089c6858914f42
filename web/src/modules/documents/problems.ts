/** What a refusal says about a form: which field, in which words. Pure. */

import { Problem } from "../../data/api.ts";
import { errorsOf, type Errors } from "./draft.ts";
import type { Field } from "./fields.ts";

/** A refusal as errors of fields; what is about none of them stands under "". */
export function problemsOf(error: Error, fields: readonly Field[]): Errors {
  if (!(error instanceof Problem)) return { "": [error.message] };
  const placed = errorsOf(
    error.errors.filter(({ pointer }) => pointer !== undefined),
    fields,
  );
  if (Object.keys(placed).length === 0) return { "": [[error.title, error.detail].filter(Boolean).join(": ")] };
  return placed;
}

/** All of them as lines of a summary, in the order of the fields. */
export function summaryOf(errors: Errors, fields: readonly Field[], prefix: string): { field: string; text: string }[] {
  return [
    ...(errors[""] ?? []).map((text) => ({ field: "", text })),
    ...fields.flatMap(({ name, label }) =>
      (errors[name] ?? []).map((text) => ({ field: `${prefix}-${name}`, text: `${label}: ${text}` })),
    ),
  ];
}
