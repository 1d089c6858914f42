/** What documents are called that others point at: asked for together, kept for as long as the page is open. */

import { Collection, type Item } from "../../data/api.ts";
import { kinds } from "../../data/kinds.svelte.ts";
import type { Kind } from "../../data/kinds.ts";
import { strings } from "../../strings.ts";
import { nameField } from "./fields.ts";
import { nameOf } from "./values.ts";

const AT_ONCE = 100;

class Names {
  private known = $state.raw<Readonly<Record<string, string>>>({});
  private readonly wanted = new Map<string, Set<string>>();
  private readonly asked = new Set<string>();

  /** undefined until it is known; may be called while something is drawn. */
  of(org: string, kind: string, id: string): string | undefined {
    const key = `${org} ${kind} ${id}`;
    const name = this.known[key];
    if (name === undefined && !this.asked.has(key) && kinds.get(kind) !== undefined) {
      this.asked.add(key);
      const among = `${org} ${kind}`;
      if (this.wanted.size === 0) queueMicrotask(() => this.askAll());
      this.wanted.set(among, (this.wanted.get(among) ?? new Set()).add(id));
    }
    return name;
  }

  /** Of documents that were read anyway. */
  tell(org: string, kind: Kind, items: readonly Item[]): void {
    const field = nameField(kind);
    this.known = {
      ...this.known,
      ...Object.fromEntries(items.map((item) => [`${org} ${kind.name} ${item.id}`, nameOf(item, field)])),
    };
  }

  private askAll(): void {
    const wanted = [...this.wanted];
    this.wanted.clear();
    for (const [among, ids] of wanted) {
      const [org = "", name = ""] = among.split(" ");
      const kind = kinds.get(name);
      for (let from = 0; kind && from < ids.size; from += AT_ONCE) void this.ask(org, kind, [...ids].slice(from, from + AT_ONCE));
    }
  }

  private async ask(org: string, kind: Kind, ids: readonly string[]): Promise<void> {
    const asked = new URLSearchParams({ "filter[id][in]": ids.join(","), limit: String(AT_ONCE) });
    if (kind.kind === "document") asked.set("deleted", "with");
    try {
      const { items } = await new Collection(org, kind.path).list(asked);
      this.tell(org, kind, items);
      const found = new Set(items.map(({ id }) => id));
      const missing = ids.filter((id) => !found.has(id));
      this.known = {
        ...this.known,
        ...Object.fromEntries(missing.map((id) => [`${org} ${kind.name} ${id}`, strings.documents.unknownRef])),
      };
    } catch {
      for (const id of ids) this.asked.delete(`${org} ${kind.name} ${id}`); // its id stays in sight; the next drawing asks again
    }
  }
}

export const names = new Names();
