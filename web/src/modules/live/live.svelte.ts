/**
 * What the page Live shows of one org: panes and incidents from REST and the socket, as frames, at most four a second.
 *
 * Publications are followed first and panes asked for then, so that nothing falls between. While publications do not come
 * the frame stands still, and REST is asked now and then instead.
 */

import { api } from "../../data/api.ts";
import { cache } from "../../data/cache.ts";
import { session } from "../../data/session.svelte.ts";
import { socket } from "../../data/socket.svelte.ts";
import { currencies, frame, known, trendOf, type Frame, type View } from "./frame.ts";
import { Incidents, type Incident, type RawIncident } from "./incidents.ts";
import { endOfPane, FINE_MS, type Item, Panes } from "./panes.ts";
import { panesSince } from "./panes_query.ts";
import { wanted, type Wanted } from "./windows.ts";

const FRAME_MS = 250;
const IDLE_FRAME_MS = 1000;
/** Coarse panes that have closed since are asked for this often; all of them, for late events, every tenth time. */
const REFRESH_MS = 60_000;
const LEARN_MS = 2000;
const POLL_MS = 10_000;
const ASLEEP_MS = 90_000;
/** Events may come this late; a quiet feed's newest panes are taken for final after it. */
const LATENESS_MS = 15_000;
const SUBSCRIBE_MS = 3000;

export class Live {
  frame = $state.raw<Frame>();
  /** Why the last question to the server failed. */
  problem = $state.raw<Error>();
  loading = $state.raw(true);
  /** Publications are coming. */
  flowing = $state.raw(false);
  everFlowed = $state.raw(false);
  online = $state.raw(navigator.onLine);
  refused = $state.raw(false);
  pausedAt = $state.raw<number>();
  /** When the newest publication or answer came, epoch ms of the server's clock. */
  heardAt = $state.raw(0);
  now = $state.raw(session.now());
  currencies = $state.raw<readonly string[]>([]);
  platforms = $state.raw<readonly string[]>([]);
  campaigns = $state.raw<readonly string[]>([]);
  firing = $state.raw<readonly Incident[]>([]);
  resolved = $state.raw<readonly Incident[]>([]);
  incidentsProblem = $state.raw<Error>();
  incidentsLoading = $state.raw(true);
  /** Incidents that have just begun, to be told. */
  begun = $state.raw<readonly Incident[]>([]);
  /** End of the newest pane with events, epoch ms. */
  newest = $state.raw(0);
  /** Up to when figures are final, epoch ms. */
  watermark = $state.raw(0);

  private panes = new Panes();
  private readonly incidents = new Incidents();
  private view: View | undefined;
  private readonly ending: (() => void)[] = [];
  private readonly subscribed: Promise<void>;
  /** The uninterrupted flow of publications at the moment. */
  private flow: object | undefined;
  private asked = 0;
  private refreshedAt = 0;
  private refreshes = 0;
  private learnedAt = 0;
  private tickedAt = session.now();
  private drawnAt = 0;
  private news = false;
  private late = false;

  constructor(private readonly org: string) {
    this.subscribed = new Promise((resolve) => {
      setTimeout(resolve, SUBSCRIBE_MS);
      this.follow(resolve);
    });
    void this.loadIncidents();
    const timer = setInterval(() => this.tick(), FRAME_MS);
    this.ending.push(() => clearInterval(timer));
  }

  close(): void {
    for (const end of this.ending) end();
  }

  /** Shows this view: at once when its panes are there, else when they have come. */
  show(view: View): void {
    const before = this.view;
    this.view = view;
    this.draw();
    if (before?.range !== view.range) void this.load();
  }

  pause(): void {
    this.pausedAt = this.now;
  }

  resume(): void {
    this.pausedAt = undefined;
    this.draw();
  }

  retry(): void {
    socket.retry();
    void this.load();
    void this.loadIncidents();
  }

  trend(entity: string): readonly (number | undefined)[] {
    return this.view === undefined || this.frame === undefined ? [] : trendOf(this.panes, this.view, entity, this.frame.now);
  }

  private follow(ready: () => void): void {
    this.ending.push(
      socket.subscribe(`org:${this.org}:metrics`, {
        items: (items) => this.take(items as Item[]),
        ready: (before) => {
          this.flow = {};
          this.flowing = this.everFlowed = true;
          ready();
          if (before === "replaced") this.panes = new Panes();
          if (before === "recovered") this.panes.cover(FINE_MS, this.panes.coveredTo(FINE_MS), Infinity);
          else if (this.asked > 0) void this.load();
        },
        waiting: () => {
          this.flowing = false;
          this.panes.interrupted(this.heardAt);
        },
        refused: () => (this.refused = true),
      }),
      socket.subscribe(`org:${this.org}:incidents`, {
        items: (items, snapshot) => {
          if (snapshot) this.incidents.replaceFiring(items as RawIncident[]);
          else this.begun = this.incidents.merge(items as RawIncident[]);
          this.showIncidents();
        },
        ready: (before) => {
          if (before === "missed" || before === "replaced") void this.loadIncidents();
        },
        waiting: () => undefined,
        refused: () => undefined,
      }),
    );
  }

  private take(items: readonly Item[]): void {
    const fine = this.panes.coveredFrom(FINE_MS);
    for (const item of items) {
      if (this.panes.put(item)) this.news = true;
      if (item.at < fine) this.late = true;
      if (item.closed && item.at + item.pane_ms > this.watermark) this.watermark = item.at + item.pane_ms;
    }
    this.heardAt = session.now();
  }

  /** Asks for the panes that the view needs and that are not there; `anew`: for all of them. */
  private async load(anew = false): Promise<void> {
    const view = this.view;
    if (view === undefined) return;
    const question = ++this.asked;
    this.loading = true;
    this.refreshedAt = session.now();
    await this.subscribed;
    const outcomes = await Promise.allSettled(wanted(view.range, session.now()).map((want) => this.ask(want, anew)));
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (question !== this.asked) return;
    this.loading = false;
    this.problem = failed?.reason as Error | undefined;
    this.panes.prune(session.now());
    this.learn();
    if (failed === undefined) this.draw(session.now());
  }

  private async ask({ step, from }: Wanted, anew: boolean): Promise<void> {
    const { panes, flow } = this;
    const known = !anew && panes.coveredFrom(step) <= from;
    const until = panes.coveredTo(step);
    if (known && until === Infinity) return;
    // The newest panes that are known were open when they were asked for.
    const begin = known ? Math.max(from, Math.floor((until - Math.max(2 * step, 60_000)) / step) * step) : from;
    const askedAt = session.now();
    const question = { step, from: begin };
    const answer = await cache.get(`${this.org} panes ${step} ${begin}`, FRAME_MS, () =>
      panesSince(question, askedAt, (query) => api.query(this.org, query)),
    );
    for (const item of answer.items) panes.put(item);
    this.watermark = Math.max(this.watermark, answer.watermark);
    this.heardAt = Math.max(this.heardAt, askedAt);
    const fineUntil = this.flowing && flow === this.flow ? Infinity : endOfPane(askedAt);
    // Of a quiet feed the watermark stands still, although time has passed.
    panes.cover(step, answer.from, step === FINE_MS ? fineUntil : Math.max(answer.watermark, askedAt - LATENESS_MS));
  }

  private async loadIncidents(): Promise<void> {
    const asOf = session.now() - 2000;
    try {
      const [firing, resolved] = await Promise.all([
        cache.get(`${this.org} incidents firing`, FRAME_MS, () => api.incidents(this.org, "firing", 200)),
        cache.get(`${this.org} incidents resolved`, FRAME_MS, () => api.incidents(this.org, "resolved", 20)),
      ]);
      this.incidents.replaceFiring(firing.items, asOf);
      this.incidents.merge(resolved.items);
      this.incidentsProblem = undefined;
    } catch (error) {
      this.incidentsProblem = error as Error; // shown with its text and a way to try again
    }
    this.incidentsLoading = false;
    this.showIncidents();
  }

  private showIncidents(): void {
    this.firing = this.incidents.firing();
    this.resolved = this.incidents.resolved();
  }

  /** What there is to choose from. */
  private learn(): void {
    this.learnedAt = session.now();
    const { platforms, campaigns } = known(this.panes);
    [this.platforms, this.campaigns] = [platforms, campaigns];
    if (this.view !== undefined) this.currencies = currencies(this.panes, this.view.range, session.now());
  }

  private tick(): void {
    const now = session.now();
    this.online = navigator.onLine;
    this.newest = this.panes.newest;
    const slept = now - this.tickedAt > ASLEEP_MS;
    this.tickedAt = now;
    if (now - this.now >= IDLE_FRAME_MS || this.news) this.now = now;
    if (this.view === undefined || this.refused) return;
    const every = this.flowing && this.problem === undefined ? REFRESH_MS : POLL_MS;
    if (!this.loading && (slept || now - this.refreshedAt > every)) {
      const anew = slept || this.late || ++this.refreshes % 10 === 0;
      this.late = false;
      void this.load(anew && this.flowing);
    }
    if (this.news && now - this.learnedAt > LEARN_MS) this.learn();
    const due = this.news || now - this.drawnAt >= IDLE_FRAME_MS;
    if (due && this.flowing && this.pausedAt === undefined && !document.hidden) this.draw(now);
  }

  /** Without publications time stands still: a window that slid on without its events would show a fall. */
  private draw(at = this.flowing || this.frame === undefined ? session.now() : this.frame.now): void {
    if (this.view === undefined) return;
    at = Math.min(this.pausedAt ?? at, this.panes.coveredTo(FINE_MS) - 1);
    if (!Number.isFinite(at)) return;
    const view = { ...this.view, currency: this.view.currency || this.frame?.currency || (this.currencies[0] ?? "") };
    const drawn = frame(this.panes, view, at, Math.max(this.watermark, at - LATENESS_MS));
    this.news = false;
    this.drawnAt = session.now();
    if (drawn !== undefined) this.frame = drawn;
  }
}
