/** Time zones to choose from: the browser's own, UTC, and all that Intl knows. */

import { zoneOffset } from "../format.ts";
import { strings } from "../strings.ts";
import type { Option } from "../ui/Options.svelte";

export const browserZone = new Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/** "Berlin" of "Europe/Berlin". */
export function zoneName(zone: string): string {
  return (zone.split("/").at(-1) ?? zone).replaceAll("_", " ");
}

/** The id "" is the browser's. */
export function zoneOptions(now: number): Option[] {
  const all = Intl.supportedValuesOf("timeZone").filter((zone) => zone !== "UTC");
  return [
    {
      id: "",
      label: strings.controls.browserZone,
      hint: `${zoneName(browserZone)} · ${zoneOffset(browserZone, now)}`,
      words: browserZone,
    },
    { id: "UTC", label: "UTC", hint: "UTC" },
    ...all.map((zone) => ({
      id: zone,
      label: zoneName(zone),
      hint: zone.split("/").slice(0, -1).join(" · ").replaceAll("_", " "),
      words: zone,
    })),
  ];
}
