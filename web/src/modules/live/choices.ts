/** What of the page is chosen in its address beside the frame's range and filters. */

import { oneOf } from "../../app/address.ts";
import { METRICS, type Metric } from "./metrics.ts";

export interface LiveChoices {
  readonly metric: Metric;
  /** A column of the table, with "-" before it when descending. */
  readonly sort: string;
}

const USUAL: LiveChoices = { metric: "spend", sort: "-spend" };

export function liveChoicesOf(query: URLSearchParams): LiveChoices {
  const sort = query.get("sort") ?? "";
  return { metric: oneOf(METRICS, query.get("metric"), USUAL.metric), sort: /^-?[a-z_]+$/.test(sort) ? sort : USUAL.sort };
}

export function liveParametersOf(choices: Partial<LiveChoices>): Record<string, string> {
  const said: Record<string, string> = {};
  if (choices.metric !== undefined) said.metric = choices.metric === USUAL.metric ? "" : choices.metric;
  if (choices.sort !== undefined) said.sort = choices.sort === USUAL.sort ? "" : choices.sort;
  return said;
}
