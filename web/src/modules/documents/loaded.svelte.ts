/** An answer of the server on a page: what was loaded last stays while it is asked again, and when that fails. */

const OLD_MS = 10_000;

export class Loaded<T> {
  value = $state.raw<T>();
  problem = $state.raw<Error>();
  loading = $state.raw(false);
  private asked = 0;
  private at = 0;
  private ask: (() => Promise<T>) | undefined;

  /** Asks; of several questions the last one counts. */
  async load(ask: () => Promise<T>): Promise<void> {
    this.ask = ask;
    const number = ++this.asked;
    this.loading = true;
    try {
      const value = await ask();
      if (number !== this.asked) return;
      this.value = value;
      this.problem = undefined;
      this.at = Date.now();
    } catch (error) {
      if (number !== this.asked) return;
      this.problem = error as Error; // shown with its text and a way to try again
    }
    this.loading = false;
  }

  async again(): Promise<void> {
    if (this.ask) await this.load(this.ask);
  }

  /** Forgets it: something else is shown from now on. */
  clear(): void {
    this.asked += 1;
    this.value = this.problem = undefined;
    this.loading = false;
  }

  /** Asks again when the page comes back into sight or the network comes back. Returns how to end that. */
  follow(): () => void {
    const look = () => {
      const due = this.problem !== undefined || Date.now() - this.at > OLD_MS;
      if (document.visibilityState === "visible" && !this.loading && due) void this.again();
    };
    addEventListener("focus", look);
    addEventListener("online", look);
    return () => {
      removeEventListener("focus", look);
      removeEventListener("online", look);
    };
  }
}
