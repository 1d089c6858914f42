import type { PageEntry } from "../../app/pages.ts";
import { strings } from "../../strings.ts";

export default {
  id: "live",
  section: strings.live.section,
  label: strings.live.page,
  icon: "live",
  order: 1,
  load: () => import("./Live.svelte"),
} satisfies PageEntry;
