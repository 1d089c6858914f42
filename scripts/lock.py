"""Renews requirements/*.txt: versions and hashes of everything; each set without those before it, quix and s3 apart."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        "run": [*project["project"]["dependencies"], *project["build-system"]["requires"], "editables"],
        "dev": project["dependency-groups"]["dev"],
        "bench": project["dependency-groups"]["bench"],
        "quix": project["dependency-groups"]["quix"],
        "s3": project["dependency-groups"]["s3"],
    }
    held: list[Path] = []
    alone = {"quix", "s3"}  # they have environments of their own, since they need older versions of what we use
    for name, requirements in wanted.items():
        out = ROOT / "requirements" / f"{name}.txt"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"{name}.in"
            lines = [*(f"-c {path}" for path in held if name not in alone), *requirements]
            source.write_text("\n".join(line.partition("#")[0] for line in lines) + "\n")
            command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--strip-extras"]
            quiet = [
                "--no-header",
                "--no-annotate",
                "--no-emit-index-url",
                "--no-emit-find-links",
                "--no-emit-trusted-host",
                "--allow-unsafe",
            ]
            subprocess.run([*command, *quiet, "-o", str(out), str(source)], check=True)
        held.append(out)


if __name__ == "__main__":
    main()
