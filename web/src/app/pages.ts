/** The pages that there are: each module's `page.ts` says its own. */

import type { Component } from "svelte";
import type { IconName } from "../ui/Icon.svelte";

export interface PageEntry {
  /** In the address: /orgs/{org}/{id}. */
  readonly id: string;
  readonly section: string;
  readonly label: string;
  readonly icon: IconName;
  readonly order: number;
  /** Kinds that this page shows: they get none made of their schema. */
  readonly kinds?: readonly string[];
  readonly load: () => Promise<{ default: Component<{ org: string }> }>;
}

const found = import.meta.glob<{ default: PageEntry }>("../modules/*/page.ts", { eager: true });

export const PAGES: readonly PageEntry[] = Object.values(found)
  .map((module) => module.default)
  .sort((a, b) => a.order - b.order);

export const CLAIMED: ReadonlySet<string> = new Set(PAGES.flatMap(({ kinds }) => kinds ?? []));

export const FIRST = PAGES[0]!;
