/** Round numbers for an axis. Pure. */

export interface Scale {
  readonly min: number;
  readonly max: number;
  readonly step: number;
}

/**
 * A scale of about `count` steps of 1, 2, 2.5 or 5 times a power of ten that holds all values, `fromZero` also zero. Where all
 * values are the same it is at least `least` high.
 */
export function scaleOf(values: readonly (number | undefined)[], count: number, fromZero: boolean, least = 1): Scale {
  const known = values.filter((value) => value !== undefined && Number.isFinite(value)) as number[];
  let low = known.length === 0 ? 0 : Math.min(...known);
  let high = known.length === 0 ? 0 : Math.max(...known);
  if (fromZero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (low === high) [low, high] = [Math.min(low, 0), Math.max(high, low + least)];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((step) => step >= raw * 0.9999)!;
  return { min: Math.floor(low / step + 1e-9) * step, max: Math.ceil(high / step - 1e-9) * step, step };
}
