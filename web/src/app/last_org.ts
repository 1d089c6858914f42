/** The org that was looked at last in this browser. */

const KEY = "cmis.org";

export const lastOrg = {
  get(): string {
    try {
      return localStorage.getItem(KEY) ?? "";
    } catch {
      return ""; // storage may be forbidden
    }
  },
  set(org: string): void {
    try {
      localStorage.setItem(KEY, org);
    } catch {
      // storage may be forbidden
    }
  },
};
