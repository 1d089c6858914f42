// Sets the theme before the first paint; a file of its own, since the page allows no inline scripts.
(() => {
  const root = document.documentElement;
  let chosen = "system";
  try {
    const kept = localStorage.getItem("cmis.theme");
    if (kept === "light" || kept === "dark") chosen = kept;
  } catch {
    // storage may be forbidden
  }
  const dark = chosen === "dark" || (chosen === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.chosen = chosen;
  root.dataset.theme = dark ? "dark" : "light";
})();
