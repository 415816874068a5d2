"""Build the wheel, install it into a fresh environment in another folder, and use it there.

Run as a script (`make wheel`). The environment sees the dependencies of the one that runs this script, so nothing is
downloaded; prmkit itself comes from the wheel alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prmkit", "lightning_modules", "datamodules", "callbacks", "registry")


def run(*command: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    return done.stdout


def check_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in PACKAGES:
        if f"{package}/py.typed" not in names:
            sys.exit(f"{wheel.name}: {package}/py.typed is missing")
    if not any(name.startswith("prmkit/configs/") and name.endswith(".yaml") for name in names):
        sys.exit(f"{wheel.name}: no configs are shipped")
    strays = [n for n in names if n.split("/")[0] not in PACKAGES and ".dist-info/" not in n]
    if strays:
        sys.exit(f"{wheel.name}: unexpected files {strays[:5]}")


def check_metadata(wheel: Path) -> None:
    """The package's page: its links lead somewhere without the repository around them."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    relative = re.findall(r"\]\((?!https?://|#)[^)]*\)", text)
    wanted = (
        "Project-URL: Repository, https://",
        "Python :: 3.13",
        "](https://github.com/prmkit/prmkit/blob/main/docs/",
    )
    missing = [line for line in wanted if line not in text]
    if relative or missing:
        sys.exit(f"{wheel.name}: relative links {relative[:3]}, missing {missing}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(place))
        run(*build, str(ROOT), cwd=place)
        (wheel,) = place.glob("*.whl")
        check_contents(wheel)
        check_metadata(wheel)
        venv.create(place / "env", with_pip=False, symlinks=True)
        python = str(place / "env" / "bin" / "python")
        purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", purelib, str(wheel), cwd=place)
        # The dependencies come from this environment by path; a .pth would also bring the editable install back.
        Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        where = run(python, "-c", "import prmkit, registry; print(prmkit.__file__, registry.__file__)", cwd=place)
        if not all(Path(p).is_relative_to(place) for p in where.split()):
            sys.exit(f"not imported from the wheel: {where}")
        face = run(python, "-c", "import prmkit; print(prmkit.solve.__name__, prmkit.Registry.__name__)", cwd=place)
        if face.split() != ["solve", "Registry"]:
            sys.exit(f"the names of `import prmkit`: {face}")
        print(run(python, "-m", "prmkit", "--help", cwd=place).splitlines()[0])
        light = run(python, "-m", "prmkit", "doctor", "--light", cwd=place)
        if not {"jsonargparse", "shtab"} <= set(re.findall(r"^[a-z-]+", light, re.M)) or "torch" in light:
            sys.exit(f"a light installation needs {light}")
        run(python, "-m", "prmkit.cli", "doctor", cwd=place)
        config = "configs/prm/accumulator.yaml"
        run(python, "-m", "prmkit.cli", "fit", "--config", config, "--print_config", cwd=place)
        print(f"{wheel.name}: installed and used in {place}")


if __name__ == "__main__":
    main()
