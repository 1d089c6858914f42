/** The order of a table's rows. While it is held, rows stay where they are although their values move. Pure. */

export type Key = number | string | undefined;

export interface Sort {
  readonly column: string;
  readonly down: boolean;
}

export function sortOf(text: string): Sort {
  return text.startsWith("-") ? { column: text.slice(1), down: true } : { column: text, down: false };
}

/** What a click on a column's head means: the other direction, or that column, numbers from the largest. */
export function sortedBy(text: string, column: string, numeric: boolean): string {
  const { column: before, down } = sortOf(text);
  if (before === column) return down ? column : `-${column}`;
  return numeric ? `-${column}` : column;
}

/** Rows sorted by a key; those without one at the end, equal ones by id, so that the order is the same every time. */
export function sorted<Row extends { readonly id: string }>(rows: readonly Row[], key: (row: Row) => Key, down: boolean): Row[] {
  const sign = down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [one, other] = [key(a), key(b)];
    if (one === undefined || other === undefined) return Number(one === undefined) - Number(other === undefined) || byId(a, b);
    const compared =
      typeof one === "number" && typeof other === "number"
        ? one - other
        : String(one).localeCompare(String(other), "en", { numeric: true });
    return compared * sign || byId(a, b);
  });
}

/** The same rows in the order they were in; new ones where they belong among those. `wanted`: sorted as they should be. */
export function held<Row extends { readonly id: string }>(wanted: readonly Row[], before: readonly string[]): Row[] {
  const byIds = new Map(wanted.map((row) => [row.id, row]));
  const kept = before.filter((id) => byIds.has(id));
  const known = new Set(kept);
  const order = [...kept];
  wanted.forEach((row, place) => {
    if (known.has(row.id)) return;
    const after = place === 0 ? -1 : order.indexOf(wanted[place - 1]!.id);
    order.splice(after + 1, 0, row.id);
    known.add(row.id);
  });
  return order.map((id) => byIds.get(id)!);
}

const byId = (a: { readonly id: string }, b: { readonly id: string }): number => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
