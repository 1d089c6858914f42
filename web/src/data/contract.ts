/** The shapes that the page exchanges with the server, by the names it uses; all of them from the generated descriptions. */

import type { paths } from "./api.gen.ts";
import type { components } from "./channels.gen.ts";

type Ok<Operation> = Operation extends { responses: { 200: { content: { "application/json": infer Body } } } } ? Body : never;
type Sent<Operation> = Operation extends { requestBody: { content: { "application/json": infer Body } } } ? Body : never;

export type Session = Ok<paths["/api/session"]["get"]>;
export type Org = Session["orgs"][number];
export type GatewayToken = Ok<paths["/api/session/gateway-token"]["post"]>;
export type SignIn = Sent<paths["/api/session"]["post"]>;

type Query = paths["/api/orgs/{org}/query"]["post"];
export type PanesQuery = Extract<Sent<Query>, { dataset: "panes" }>;
export type QueryResult = Ok<Query>;

export type IncidentList = Ok<paths["/api/orgs/{org}/alerts/history"]["get"]>;
export type HistoryIncident = IncidentList["items"][number];

export type KindList = Ok<paths["/api/orgs/{org}/kinds"]["get"]>;

export type MetricItem = components["schemas"]["MetricItem"];
export type IncidentItem = components["schemas"]["IncidentItem"];
