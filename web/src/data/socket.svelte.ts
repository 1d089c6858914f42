/** The one websocket of the page: the official client of the gateway's protocol, and what its state is. */

import { Centrifuge, State, UnauthorizedError, type SubscribedContext } from "centrifuge";

import { api, Problem } from "./api.ts";

export type SocketState = "connecting" | "connected" | "gone";

/** first: there were none; recovered: they come now; missed: they do not; replaced: they are of another log. */
export type Before = "first" | "recovered" | "missed" | "replaced";

export interface Listener {
  /** Items of a publication, or the snapshot of a subscription that recovered nothing. */
  readonly items: (items: readonly unknown[], snapshot: boolean) => void;
  /** From now on publications come; what with those since the last one that came? */
  readonly ready: (before: Before) => void;
  /** Publications do not come at the moment. */
  readonly waiting: () => void;
  /** The channel is refused. */
  readonly refused: (reason: string) => void;
}

export class Socket {
  state = $state.raw<SocketState>("connecting");
  private client: Centrifuge | undefined;

  /** `ended`: the gateway has closed the connection for good, since it no longer takes us; or so it says. */
  open(url: string, ended: () => void): void {
    if (this.client !== undefined) return;
    this.client = new Centrifuge(url, {
      name: "page",
      minReconnectDelay: 300,
      maxReconnectDelay: 8000,
      getToken: async () => {
        try {
          return (await api.gatewayToken()).token;
        } catch (error) {
          if (error instanceof Problem && (error.status === 401 || error.status === 403))
            throw new UnauthorizedError(error.message);
          throw error;
        }
      },
    });
    this.client.on("state", ({ newState }) => {
      this.state = newState === State.Connected ? "connected" : newState === State.Connecting ? "connecting" : "gone";
    });
    // Code 0 is our own `disconnect`.
    this.client.on("disconnected", ({ code }) => code !== 0 && ended());
    this.client.connect();
  }

  close(): void {
    this.client?.disconnect();
    this.client = undefined;
    this.state = "connecting";
  }

  /** Connects now: after it was closed for good, or instead of after the pause between tries. */
  retry(): void {
    if (this.client === undefined || this.state === "connected") return;
    this.client?.disconnect();
    this.client?.connect();
  }

  /** Follows a channel until the returned function is called. */
  subscribe(channel: string, listener: Listener): () => void {
    const client = this.client;
    if (client === undefined) throw new Error(`the socket is not open, so ${channel} cannot be subscribed`);
    const subscription = client.newSubscription(channel);
    let epoch: string | undefined;
    subscription.on("subscribed", (context: SubscribedContext) => {
      const before = epoch;
      epoch = context.streamPosition?.epoch ?? "";
      if (before === undefined) listener.ready("first");
      else if (epoch !== before) listener.ready("replaced");
      else listener.ready(context.recovered ? "recovered" : "missed");
      if (!context.recovered && Array.isArray(context.data?.items)) listener.items(context.data.items, true);
    });
    subscription.on("publication", ({ data }) => {
      if (Array.isArray(data?.items)) listener.items(data.items, false);
    });
    subscription.on("subscribing", () => epoch !== undefined && listener.waiting());
    subscription.on("unsubscribed", ({ code, reason }) => code !== 0 && listener.refused(reason));
    subscription.subscribe();
    return () => {
      subscription.removeAllListeners();
      subscription.unsubscribe();
      client.removeSubscription(subscription);
    };
  }
}

export const socket = new Socket();
