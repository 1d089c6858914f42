import { svelte } from "@sveltejs/vite-plugin-svelte";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

/** licenses.txt: the licences of everything of others that is in the page, as they ask. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle(_, bundle) {
      const packages = new Set(["@fontsource-variable/inter"]);
      for (const part of Object.values(bundle))
        for (const id of part.type === "chunk" ? part.moduleIds : []) {
          const inside = id.replaceAll("\\", "/").split("/node_modules/").at(-1)!;
          if (inside !== id)
            packages.add(
              inside
                .split("/")
                .slice(0, inside.startsWith("@") ? 2 : 1)
                .join("/"),
            );
        }
      const texts = [...packages].sort().map((name) => {
        const folder = join(import.meta.dirname, "node_modules", name);
        if (!existsSync(folder)) throw new Error(`licences: ${name} is in the page but not in node_modules`);
        const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as {
          version: string;
          license: string;
        };
        const files = readdirSync(folder).filter((file) => /^(licen[cs]e|notice)/i.test(file) && !/s$/i.test(file));
        return [`${name} ${version} (${license})`, ...files.map((file) => readFileSync(join(folder, file), "utf8").trim())].join(
          "\n\n",
        );
      });
      this.emitFile({ type: "asset", fileName: "licenses.txt", source: texts.join(`\n\n${"-".repeat(80)}\n\n`) + "\n" });
    },
  };
}

export default defineConfig({
  plugins: [svelte(), licences()],
  build: {
    outDir: "../cmis_stream/page",
    emptyOutDir: true,
    target: "es2022",
    // The page's policy allows no inline scripts, fonts or data beyond images.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 700,
    reportCompressedSize: false,
  },
  server: {
    host: "127.0.0.1",
    proxy: { "/api": { target: process.env.CMIS_URL ?? "http://127.0.0.1:8600" } },
  },
});
