/** Which columns of a table are shown, remembered in this browser. */

interface Choosable {
  readonly id: string;
  readonly fixed?: boolean;
  readonly extra?: boolean;
}

export function shownColumns<Column extends Choosable>(
  columns: readonly Column[],
  chosen: readonly string[] | undefined,
): Column[] {
  return columns.filter((column) => column.fixed || (chosen === undefined ? !column.extra : chosen.includes(column.id)));
}

export function rememberedColumns(table: string): string[] | undefined {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(`cmis.columns.${table}`) ?? "null");
    return Array.isArray(kept) ? kept.filter((id) => typeof id === "string") : undefined;
  } catch {
    return undefined; // storage is forbidden, or holds something else
  }
}

export function rememberColumns(table: string, chosen: readonly string[]): void {
  try {
    localStorage.setItem(`cmis.columns.${table}`, JSON.stringify(chosen));
  } catch {
    // storage may be forbidden; the choice then holds until the page is left
  }
}
