/** Whom numbers are about: paths below an org (currency, platform, account, campaign), as one key. docs/design/live.md */

export interface Entity {
  readonly currency: string;
  readonly platform: string;
  readonly account: string;
  readonly campaign: string;
}

/** The key of a path: parts percent-encoded as Python's `quote(part, safe="")` does, joined by "/". */
export function entityKey(path: readonly string[]): string {
  return path.map(quote).join("/");
}

function quote(part: string): string {
  return encodeURIComponent(part).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** Depth of a key: 1 the org in one currency, 2 a platform, 4 a campaign. 0 for custom metrics, which have other units. */
export function depth(key: string): number {
  return key.includes("#") ? 0 : key.split("/").length;
}

export function parseEntity(key: string): Entity {
  const [currency = "", platform = "", account = "", campaign = ""] = key.split("/").map(decodeURIComponent);
  return { currency, platform, account, campaign };
}
