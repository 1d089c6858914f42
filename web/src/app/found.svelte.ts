/** What the page in sight knows of its org, for the search: campaigns and firing alerts. */

import type { Severity } from "../ui/severity.ts";

interface Alert {
  readonly id: string;
  readonly rule: string;
  readonly severity: Severity;
  readonly platform: string;
  readonly campaign: string;
}

class Found {
  org = $state.raw("");
  campaigns = $state.raw<readonly string[]>([]);
  alerts = $state.raw<readonly Alert[]>([]);

  tell(org: string, campaigns: readonly string[], alerts: readonly Alert[]): void {
    this.org = org;
    this.campaigns = campaigns;
    this.alerts = alerts;
  }
}

export const found = new Found();
