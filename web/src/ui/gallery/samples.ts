/** Numbers that look like something, the same at every visit. */

export function shape(count: number, seed = 1): number[] {
  return Array.from({ length: count }, (_, place) => 40 + 12 * Math.sin(place / (3 + seed)) + 5 * Math.sin(place * 1.7 * seed));
}

export const rows = Array.from({ length: 300 }, (_, place) => ({
  id: `r${place}`,
  name: `campaign-${String(place + 1).padStart(3, "0")}`,
  spend: (300 - place) * 1_370_000,
  ctr: place % 7 === 3 ? undefined : 0.01 + (place % 11) / 1000,
  share: (300 - place) / 45_150,
  seed: (place % 5) + 1,
}));
