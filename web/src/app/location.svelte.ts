/** The page's address as state: reading it follows the back button, changing it makes history. */

import { withParameters } from "./address.ts";

class Location {
  private url = $state.raw(new URL(window.location.href));
  readonly path = $derived(this.url.pathname);
  readonly search = $derived(this.url.search);
  readonly query = $derived(this.url.searchParams);

  constructor() {
    window.addEventListener("popstate", () => this.read());
  }

  /** Goes to a path with its query. `replace`: without a step in the history. */
  go(href: string, { replace = false } = {}): void {
    if (href === window.location.pathname + window.location.search + window.location.hash) return;
    history[replace ? "replaceState" : "pushState"]({}, "", href);
    this.read();
  }

  /** Changes parameters of the query; "" removes one. */
  say(parameters: Record<string, string>, { replace = false } = {}): void {
    this.go(this.path + withParameters(this.search, parameters), { replace });
  }

  /** Follows links of ours without loading the page anew. */
  readonly onclick = (event: MouseEvent): void => {
    const link = (event.target as Element | null)?.closest?.("a[href]") as HTMLAnchorElement | null;
    if (
      link === null ||
      event.defaultPrevented ||
      event.button !== 0 ||
      event.metaKey ||
      event.ctrlKey ||
      event.shiftKey ||
      event.altKey
    )
      return;
    if (link.origin !== window.location.origin || link.target !== "" || link.hasAttribute("download")) return;
    if (link.hash !== "" && link.pathname === window.location.pathname) return;
    event.preventDefault();
    this.go(link.pathname + link.search);
  };

  private read(): void {
    this.url = new URL(window.location.href);
  }
}

export const location = new Location();
