/** How money, ratios, counts and times are written: the only place that knows. Money is integer micros, times epoch ms. */

export type Unit = "money" | "unit_money" | "count" | "percent" | "factor";

/** The catalogue's language; numbers are written as it writes them. */
const LOCALE = "en-US";
const NOTHING = "–";
const MICROS = 1_000_000;

export interface Style {
  readonly currency?: string;
  /** Few digits, for figures and axes; else all that count. */
  readonly short?: boolean;
  /** Money without its fraction. */
  readonly whole?: boolean;
}

const formats = new Map<string, Intl.NumberFormat>();

function number(options: Intl.NumberFormatOptions): Intl.NumberFormat {
  const key = JSON.stringify(options);
  let format = formats.get(key);
  if (format === undefined) formats.set(key, (format = new Intl.NumberFormat(LOCALE, options)));
  return format;
}

/** A value with its unit; "–" for what has no value. */
export function value(
  amount: number | undefined,
  unit: Unit,
  { currency = "", short = false, whole = false }: Style = {},
): string {
  if (amount === undefined || !Number.isFinite(amount)) return NOTHING;
  switch (unit) {
    case "money":
      return money(amount, currency, short, whole);
    case "unit_money":
      return unitMoney(amount, currency);
    case "count":
      return count(amount, short);
    case "percent":
      return number({ style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 }).format(amount);
    case "factor":
      return `${number({ minimumFractionDigits: 2, maximumFractionDigits: 2 }).format(amount)}×`;
  }
}

function money(micros: number, currency: string, short: boolean, whole: boolean): string {
  const amount = micros / MICROS;
  if (short && Math.abs(amount) >= 1e6) return inCurrency(amount, currency, { notation: "compact", maximumSignificantDigits: 4 });
  return inCurrency(amount, currency, whole || (short && Math.abs(amount) >= 10_000) ? { maximumFractionDigits: 0 } : {});
}

/** The price of one thing: cents are too coarse for what costs less than a few units. */
function unitMoney(micros: number, currency: string): string {
  const amount = micros / MICROS;
  const digits = currencyDigits(currency) + (Math.abs(amount) < 10 ? 1 : 0);
  return inCurrency(amount, currency, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function inCurrency(amount: number, currency: string, options: Intl.NumberFormatOptions): string {
  if (!/^[A-Z]{3}$/.test(currency))
    return `${number({ maximumFractionDigits: 2, ...options }).format(amount)} ${currency}`.trim();
  return number({ style: "currency", currency, currencyDisplay: "narrowSymbol", ...options }).format(amount);
}

function currencyDigits(currency: string): number {
  if (!/^[A-Z]{3}$/.test(currency)) return 2;
  return number({ style: "currency", currency }).resolvedOptions().maximumFractionDigits ?? 2;
}

function count(amount: number, short: boolean): string {
  if (short && Math.abs(amount) >= 1e7) return number({ notation: "compact", maximumSignificantDigits: 4 }).format(amount);
  return number({ maximumFractionDigits: Number.isInteger(amount) ? 0 : 1 }).format(amount);
}

/** A number of any kind, with all digits that it has. */
export function amount(given: number): string {
  return Number.isFinite(given) ? number({ maximumFractionDigits: 12 }).format(given) : NOTHING;
}

/** An amount of money whose currency is not known: "12.00", "0.0125". */
export function decimal(given: number): string {
  return Number.isFinite(given) ? number({ minimumFractionDigits: 2, maximumFractionDigits: 6 }).format(given) : NOTHING;
}

/** "1.5 MB"; 1 kB is 1,000 bytes. */
export function bytes(given: number): string {
  const scale = given < 1e3 ? 0 : given < 1e6 ? 1 : given < 1e9 ? 2 : 3;
  return `${number({ maximumFractionDigits: scale === 0 ? 0 : 1 }).format(given / 1000 ** scale)} ${["B", "kB", "MB", "GB"][scale]}`;
}

/** A value on an axis: the fewest digits that tell ticks `step` apart. */
export function tick(amount: number, unit: Unit, currency: string, step: number): string {
  const scale = unit === "money" || unit === "unit_money" ? MICROS : unit === "percent" ? 0.01 : 1;
  const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(Math.max(step, Number.MIN_VALUE) / scale) + 1e-9)));
  const options: Intl.NumberFormatOptions = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  if (Math.abs(amount / scale) >= 10_000)
    Object.assign(options, { notation: "compact", minimumFractionDigits: 0, maximumFractionDigits: 2 });
  if (unit === "percent") return number({ style: "percent", ...options }).format(amount);
  if (unit === "count") return number(options).format(amount);
  if (unit === "factor") return `${number(options).format(amount)}×`;
  return inCurrency(amount / MICROS, currency, options);
}

/** A change as a share of what was: "+12.4%"; tenfold and more as a factor. */
export function changed(ratio: number | undefined): string {
  if (ratio === undefined || !Number.isFinite(ratio)) return NOTHING;
  if (ratio >= 9.995) return `${number({ maximumFractionDigits: 1 }).format(ratio + 1)}×`;
  return number({ style: "percent", signDisplay: "exceptZero", minimumFractionDigits: 1, maximumFractionDigits: 1 })
    .format(ratio)
    .replace("-", "−");
}

export function share(ratio: number | undefined): string {
  if (ratio === undefined || !Number.isFinite(ratio)) return NOTHING;
  return number({ style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(ratio);
}

const dates = new Map<string, Intl.DateTimeFormat>();

function date(zone: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const key = `${zone} ${JSON.stringify(options)}`;
  let format = dates.get(key);
  if (format === undefined)
    dates.set(key, (format = new Intl.DateTimeFormat("en-GB", { timeZone: zone, hourCycle: "h23", ...options })));
  return format;
}

const HOUR_MINUTE = { hour: "2-digit", minute: "2-digit" } as const;
const DAY = { day: "numeric", month: "short" } as const;

/** A moment; "–" for what is none. */
function moment(at: number, zone: string, options: Intl.DateTimeFormatOptions): string {
  return Number.isFinite(at) ? date(zone, options).format(at) : NOTHING;
}

export const time = {
  /** 14:03 */
  minute: (at: number, zone: string): string => moment(at, zone, HOUR_MINUTE),
  /** 14:03:20 */
  second: (at: number, zone: string): string => moment(at, zone, { ...HOUR_MINUTE, second: "2-digit" }),
  /** 24 Nov */
  day: (at: number, zone: string): string => moment(at, zone, DAY),
  /** Mon 24 Nov, 14:03 */
  full: (at: number, zone: string): string => moment(at, zone, { weekday: "short", ...DAY, ...HOUR_MINUTE }),
  /** 24 Nov 2026 */
  date: (at: number, zone: string): string => moment(at, zone, { ...DAY, year: "numeric" }),
  /** 24 Nov 2026, 14:03:20 */
  moment: (at: number, zone: string): string => moment(at, zone, { ...DAY, year: "numeric", ...HOUR_MINUTE, second: "2-digit" }),
  /** What tells times of a window of `length` ms apart. */
  within: (at: number, length: number, zone: string): string =>
    length > 86_400_000
      ? moment(at, zone, { ...DAY, ...HOUR_MINUTE })
      : length > 3_600_000
        ? time.minute(at, zone)
        : time.second(at, zone),
};

/** How long: "8 s", "3 min", "2 h 5 min", "3 d 4 h". Milliseconds in. */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  const days = Math.floor(hours / 24);
  return hours % 24 === 0 ? `${days} d` : `${days} d ${hours % 24} h`;
}

/** "UTC+2" or "UTC−3:30" at that moment. */
export function zoneOffset(zone: string, at: number): string {
  const name =
    date(zone, { timeZoneName: "shortOffset" })
      .formatToParts(at)
      .find((part) => part.type === "timeZoneName")?.value ?? "";
  return name.replace("GMT", "UTC");
}

/** Minutes that the zone is ahead of UTC at that moment. */
export function offsetMinutes(zone: string, at: number): number {
  const parts = date(zone, { year: "numeric", month: "2-digit", day: "2-digit", ...HOUR_MINUTE }).formatToParts(at);
  const part = (type: string) => Number(parts.find((p) => p.type === type)!.value);
  const local = Date.UTC(part("year"), part("month") - 1, part("day"), part("hour"), part("minute"));
  return Math.round((local - Math.floor(at / 60_000) * 60_000) / 60_000);
}

/** A moment as fields for local times hold it: "2026-11-24T14:03:20"; "" for none. */
export function toLocal(at: number, zone: string): string {
  if (!Number.isFinite(at)) return "";
  return new Date(at + offsetMinutes(zone, at) * 60_000).toISOString().slice(0, 19);
}

/** The moment of a local time; undefined where it is none. Of a time that the clocks show twice, the first. */
export function fromLocal(local: string, zone: string): number | undefined {
  const asUtc = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}/.test(local) ? Date.parse(`${local}Z`) : Number.NaN;
  if (!Number.isFinite(asUtc)) return undefined;
  const offsets = [asUtc - 86_400_000, asUtc + 86_400_000].map((near) => offsetMinutes(zone, near) * 60_000);
  const found = offsets.map((offset) => asUtc - offset).filter((at) => toLocal(at, zone) === toLocal(asUtc, "UTC"));
  // A time that the clocks leave out is read with the offset before the gap.
  return found.length > 0 ? Math.min(...found) : asUtc - offsets[0]!;
}

/** Round moments of the zone's clock in [from, to], about `count` of them: where a time axis has its labels. */
export function timeTicks(from: number, to: number, zone: string, count: number): number[] {
  const steps = [10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800].map(
    (s) => s * 1000,
  );
  const step = steps.find((step) => (to - from) / step <= count) ?? steps.at(-1)!;
  const offset = offsetMinutes(zone, from) * 60_000;
  const ticks: number[] = [];
  for (let local = Math.ceil((from + offset) / step) * step; local - offset <= to; local += step) {
    // A change of the clocks inside the window moves the ticks behind it.
    ticks.push(local - offsetMinutes(zone, local - offset) * 60_000);
  }
  return ticks.filter((at, place) => at >= from && at <= to && (place === 0 || at > ticks[place - 1]!));
}
