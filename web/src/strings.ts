/** Everything the page says, in one place. */

import type { Metric } from "./modules/live/metrics.ts";
import type { Range } from "./app/address.ts";
import type { Severity } from "./ui/severity.ts";

const plural = (count: number, one: string, many: string) => `${count} ${count === 1 ? one : many}`;

const ranges: Record<Range, string> = {
  "5m": "5 minutes",
  "15m": "15 minutes",
  "1h": "hour",
  "6h": "6 hours",
  "24h": "24 hours",
  "7d": "7 days",
};

const metrics: Record<Metric, { readonly name: string; readonly meaning: string }> = {
  spend: { name: "Spend", meaning: "What the ads cost." },
  impressions: { name: "Impressions", meaning: "How often the ads were shown." },
  clicks: { name: "Clicks", meaning: "How often they were clicked." },
  ctr: { name: "CTR", meaning: "Click-through rate: clicks per impression." },
  cpc: { name: "CPC", meaning: "Cost per click: spend per click." },
  conversions: { name: "Conversions", meaning: "What people did after a click." },
  cpa: { name: "CPA", meaning: "Cost per acquisition: spend per conversion." },
  revenue: { name: "Revenue", meaning: "What the conversions were worth." },
  roas: { name: "ROAS", meaning: "Return on ad spend: revenue per unit of spend." },
};

const platforms: Record<string, string> = {
  meta: "Meta",
  google: "Google",
  tiktok: "TikTok",
  linkedin: "LinkedIn",
  x: "X",
  snapchat: "Snapchat",
};

const severity: Record<Severity, string> = { critical: "Critical", high: "High", medium: "Medium", low: "Low" };

export const strings = {
  product: "CMIS Stream",
  title: (page: string, org?: string) =>
    [page, org, "CMIS Stream"].filter((part) => part !== undefined && part !== "").join(" · "),

  ui: {
    close: "Close",
    clear: (label: string) => `Clear ${label.toLowerCase()}`,
    loading: "Loading",
    nothingFound: "Nothing found",
    retry: "Try again",
    rows: (count: number) => plural(count, "row", "rows"),
    columns: "Columns",
    skip: "Skip to content",
  },

  errors: {
    unreachable: "The server did not answer.",
    offline: "No connection to the server",
    status: (status: number) => `The server answered ${status}`,
    notJson: "The server's answer cannot be read",
    unexpected: "Something went wrong",
    forbidden: "This is not here for you",
    forbiddenText: "It does not exist, or you are not a member of the organisation it belongs to.",
    request: (id: string) => `Request ${id}`,
    pageFailed: "This page could not be loaded",
    reload: "Load the page again",
  },

  severity,
  connection: { live: "Live", connecting: "Connecting", reconnecting: "Reconnecting", offline: "Offline", paused: "Paused" },
  freshness: {
    current: "Data is current",
    fresh: (age: string) => `Data ${age} old`,
    stale: (age: string) => `No new data for ${age}`,
    detail: (newest: string, final: string) =>
      `Newest data: ${newest}.\nFinal up to ${final}; figures after it may still change.`,
    unknown: "not known",
  },

  chart: {
    provisional: "provisional",
    time: "Time",
    failed: "The chart could not be loaded",
    failedText: "The numbers are in the table.",
    asTable: "Show as table",
    asChart: "Show as chart",
  },

  signIn: {
    page: "Sign in",
    title: "Sign in",
    working: "Signing you in",
    explain: "Open the link that the server printed when it started, or make a new one on its machine:",
    command: "cmis sign-in",
    explainLink: "A link works once, for 15 minutes.",
    code: "Code of the link",
    codeHint: "Paste the link or its code",
    submit: "Sign in",
    failed: "This link does not work any more",
    failedText: "It has been used, or is older than 15 minutes. Make a new one on the server's machine:",
    ended: "Your session has ended. Sign in again to go on.",
    noOrgs: "You are not a member of any organisation",
    noOrgsText: "Ask an owner or admin to add you.",
  },

  frame: {
    sections: "Pages",
    org: "Organisation",
    findOrg: "Find an organisation",
    search: "Search",
    account: "Account",
    open: "Open navigation",
    theme: "Theme",
    themes: { system: "As the system", light: "Light", dark: "Dark" },
    signOut: "Sign out",
    signOutFailed: "You could not be signed out: the server did not answer.",
    gallery: "Component gallery",
    roles: { owner: "Owner", admin: "Admin", analyst: "Analyst", viewer: "Viewer" } as Record<string, string>,
    nowhere: "There is no such page",
    nowhereText: "The address may be misspelt, or the page has moved.",
    home: "Go to Live",
    unknownOrg: "There is no such organisation",
    unknownOrgText: (org: string) => `“${org}” does not exist, or you are not a member of it.`,
  },

  palette: {
    title: "Search",
    placeholder: "Find pages, organisations, campaigns, alerts and actions",
    pages: "Pages",
    orgs: "Organisations",
    alerts: "Firing alerts",
    campaigns: "Campaigns",
    actions: "Actions",
    switchTo: (theme: string) => `Theme: ${theme}`,
  },

  controls: {
    label: "Range and filters",
    range: "Range",
    lastRange: (range: Range) => `The last ${ranges[range]}`,
    zone: "Time zone",
    findZone: "Find a time zone",
    browserZone: "This browser",
    platforms: "Platforms",
    allPlatforms: "All platforms",
    somePlatforms: (count: number) => plural(count, "platform", "platforms"),
    campaign: "Campaign",
    findCampaign: "Filter campaigns",
    currency: "Currency",
    clear: "Clear filters",
    pause: "Pause",
    resume: "Resume",
  },

  platform: (id: string) => platforms[id] ?? id,
  metric: (metric: Metric) => metrics[metric].name,
  metricMeaning: (metric: Metric) => metrics[metric].meaning,

  live: {
    page: "Live",
    section: "Monitor",
    figures: "Figures; the chosen one is drawn below",
    change: (range: Range, until: string) => `The ${ranges[range]} until ${until}, compared with the ${ranges[range]} before`,
    tone: { good: "Better. ", bad: "Worse. ", neutral: "" },
    before: (range: Range) => `Previous ${ranges[range]}`,
    chart: (metric: Metric, range: Range) => `${metrics[metric].name} over the last ${ranges[range]}`,
    perBucket: (bucket: string) => `per ${bucket}`,
    campaigns: "Campaigns",
    total: (count: number) => `${plural(count, "campaign", "campaigns")}`,
    platform: "Platform",
    campaign: "Campaign",
    account: "Account",
    share: "Share of spend",
    cpm: "CPM",
    cvr: "CVR",
    cpmMeaning: "Cost per thousand impressions.",
    cvrMeaning: "Conversion rate: conversions per click.",
    shareMeaning: "The campaign's part of the spend in this table.",
    trend: (metric: Metric) => `${metrics[metric].name} trend`,
    emptyTitle: "No events in this window",
    emptyText: (range: Range) =>
      `Nothing has come in during the last ${ranges[range]}. Send some, for example from a file, or look further back.`,
    ingest: "cmis ingest events.ndjson",
    emptyFiltered: "No campaign matches the filters",
    emptyFilteredText: "Change the filters, or clear them to see all campaigns.",
    stale: (time: string) => `Not live: figures are as of ${time}.`,
    paused: (time: string) => `Paused at ${time}. Events keep coming in behind it.`,
    refused: "You have no access to the live channels of this organisation.",
  },

  alerts: {
    title: "Alerts",
    firing: (count: number) => (count === 0 ? "None firing" : `${count} firing`),
    none: "Nothing is firing",
    noneText: "Alerts appear here the moment a rule's condition holds.",
    resolved: "Resolved",
    since: (age: string) => `for ${age}`,
    lasted: (time: string, length: string) => (length === "" ? time : `${time} · lasted ${length}`),
    org: "Whole organisation",
    began: (severity: string, rule: string, entity: string) => `New alert, ${severity}: ${rule}, ${entity}`,
    over: (window: string) => `over ${window}`,
    more: (count: number) => `${count} more`,
  },

  gallery: { page: "Components", intro: "Every component of the page in every state." },
} as const;
