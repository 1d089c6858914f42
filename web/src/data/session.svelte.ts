/** Who is signed in, with which orgs; and the server's clock. */

import { api, onSignedOut, Problem } from "./api.ts";
import { cache } from "./cache.ts";
import type { Org, Session as Told } from "./contract.ts";
import { kinds } from "./kinds.svelte.ts";
import { socket } from "./socket.svelte.ts";

const CHECK_MS = 5000;

export type SessionState = "loading" | "in" | "out" | "failed";

class Session {
  state = $state.raw<SessionState>("loading");
  told = $state.raw<Told>();
  problem = $state.raw<Error>();
  /** How far the server's clock is ahead of this machine's, in ms. */
  private ahead = 0;

  constructor() {
    onSignedOut(() => this.ended());
  }

  now(): number {
    return Date.now() + this.ahead;
  }

  get orgs(): readonly Org[] {
    return this.told?.orgs ?? [];
  }

  async load(): Promise<void> {
    this.state = "loading";
    try {
      this.began(await api.session());
    } catch (error) {
      if (error instanceof Problem && error.status === 401) return;
      this.problem = error as Error; // shown with its text and a way to try again
      this.state = "failed";
    }
  }

  /** Throws what the exchange of the code failed with. */
  async signIn(code: string): Promise<void> {
    this.began(await api.signIn(code));
  }

  async signOut(): Promise<void> {
    await api.signOut();
    this.ended();
  }

  private began(told: Told): void {
    this.told = told;
    this.ahead = Date.parse(told.server_time) - Date.now() || 0;
    this.problem = undefined;
    this.state = "in";
    socket.open(told.gateway.url, () => void this.check());
  }

  /** The gateway takes us no more. Where the session has ended, `onSignedOut` hears of it; else it is tried again. */
  private async check(): Promise<void> {
    try {
      await api.session();
    } catch (error) {
      if (error instanceof Problem && error.status === 401) return;
      // Whether it has ended cannot be told now: the next try tells.
    }
    setTimeout(() => this.state === "in" && socket.retry(), CHECK_MS);
  }

  private ended(): void {
    socket.close();
    cache.forget();
    kinds.forget();
    this.told = undefined;
    this.state = "out";
  }
}

export const session = new Session();
