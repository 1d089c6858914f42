/** Light, dark or as the system: kept in this browser. public/theme.js sets it before the first paint. */

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const KEY = "cmis.theme";

class Themes {
  chosen = $state.raw<Theme>((document.documentElement.dataset.chosen as Theme) ?? "system");
  private systemDark = $state.raw(false);
  readonly shown: "light" | "dark" = $derived(this.chosen === "system" ? (this.systemDark ? "dark" : "light") : this.chosen);

  constructor() {
    const query = matchMedia("(prefers-color-scheme: dark)");
    this.systemDark = query.matches;
    query.addEventListener("change", ({ matches }) => {
      this.systemDark = matches;
      this.apply();
    });
  }

  choose(theme: Theme): void {
    this.chosen = theme;
    this.apply();
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // storage may be forbidden; the choice then holds until the page is left
    }
  }

  private apply(): void {
    document.documentElement.dataset.theme = this.shown;
    document.documentElement.dataset.chosen = this.chosen;
  }
}

export const themes = new Themes();
