/** The query cache: an answer is asked for once while it is young, however many want it at the same time. */

interface Entry {
  readonly answer: Promise<unknown>;
  readonly at: number;
}

const LARGEST = 200;

export class Cache {
  private readonly entries = new Map<string, Entry>();

  constructor(private readonly now: () => number = Date.now) {}

  /** The answer under this key, at most `youngMs` old; else `ask()`'s. A failure is not kept. */
  get<T>(key: string, youngMs: number, ask: () => Promise<T>): Promise<T> {
    const held = this.entries.get(key);
    if (held !== undefined && this.now() - held.at < youngMs) return held.answer as Promise<T>;
    const answer = ask();
    const entry = { answer, at: this.now() };
    this.entries.delete(key);
    this.entries.set(key, entry);
    answer.catch(() => this.entries.get(key) === entry && this.entries.delete(key));
    if (this.entries.size > LARGEST) this.entries.delete(this.entries.keys().next().value!);
    return answer;
  }

  forget(prefix = ""): void {
    for (const key of this.entries.keys()) if (key.startsWith(prefix)) this.entries.delete(key);
  }
}

export const cache = new Cache();
