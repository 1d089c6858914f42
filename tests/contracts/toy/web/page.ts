import type { PageEntry } from "../../app/pages.ts";

export default {
  id: "shelf",
  section: "Toys",
  label: "Toy shelf",
  icon: "list",
  order: 90,
  kinds: ["toy"],
  load: () => import("./Shelf.svelte"),
} satisfies PageEntry;
