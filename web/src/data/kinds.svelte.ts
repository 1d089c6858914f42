/** Which kinds an org has; asked once, for the navigation and for the pages that are made of them. */

import { api } from "./api.ts";
import type { Kind } from "./kinds.ts";

class Kinds {
  /** Of `org`; undefined until they are told. */
  list = $state.raw<readonly Kind[]>();
  problem = $state.raw<Error>();
  private org = "";

  async load(org: string, { again = false } = {}): Promise<void> {
    if (org === this.org && !again) return;
    if (org !== this.org) this.list = undefined;
    this.org = org;
    this.problem = undefined;
    try {
      const { items } = await api.kinds(org);
      if (org === this.org) this.list = items;
    } catch (error) {
      if (org === this.org) this.problem = error as Error; // shown where a page needs them
    }
  }

  get(name: string): Kind | undefined {
    return this.list?.find((kind) => kind.name === name);
  }

  forget(): void {
    this.org = "";
    this.list = undefined;
  }
}

export const kinds = new Kinds();
