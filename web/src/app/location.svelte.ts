/** The page's address as state: reading it follows the back button, changing it makes history. */

import { withParameters } from "./address.ts";

class Location {
  private url = $state.raw(new URL(window.location.href));
  readonly path = $derived(this.url.pathname);
  readonly search = $derived(this.url.search);
  readonly query = $derived(this.url.searchParams);

  /** Asks before the page is left, since something on it is not saved: goes on when it is called. */
  leaving = $state.raw<() => void>();
  private unsaved: (() => boolean) | undefined;
  /** How many steps of the history lie before this one: tells back from forward. */
  private place = history.state?.place ?? 0;
  private returning = false;

  constructor() {
    history.replaceState({ place: this.place }, "");
    window.addEventListener("popstate", () => this.moved());
    window.addEventListener("beforeunload", (event) => this.unsaved?.() && event.preventDefault());
  }

  /** Until the function that it returns is called, leaving asks first while `unsaved()` is true. */
  hold(unsaved: () => boolean): () => void {
    this.unsaved = unsaved;
    return () => {
      if (this.unsaved === unsaved) this.unsaved = undefined;
    };
  }

  /** Leaves after all, or with false stays. */
  leave(really: boolean): void {
    const go = this.leaving;
    this.leaving = undefined;
    if (!really) return;
    this.unsaved = undefined;
    go?.();
  }

  /** Goes to a path with its query. `replace`: without a step in the history. */
  go(href: string, { replace = false } = {}): void {
    if (href === window.location.pathname + window.location.search + window.location.hash) return;
    if (this.unsaved?.()) {
      this.leaving = () => this.go(href, { replace });
      return;
    }
    if (!replace) this.place += 1;
    history[replace ? "replaceState" : "pushState"]({ place: this.place }, "", href);
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

  /** Back or forward. The browser has gone there already: where that has to be asked first, it is sent back. */
  private moved(): void {
    const steps = (history.state?.place ?? 0) - this.place;
    if (this.returning) {
      this.returning = false;
      return;
    }
    if (this.unsaved?.() && steps !== 0) {
      this.returning = true;
      history.go(-steps);
      this.leaving = () => history.go(steps);
      return;
    }
    this.place += steps;
    this.read();
  }

  private read(): void {
    this.url = new URL(window.location.href);
  }
}

export const location = new Location();
