"""Check the types of the page's scripts by TypeScript: python scripts/check_page_types.py.

The scripts carry their types as JSDoc comments and `scripts/page_types/page.d.ts`, so nothing is
built. The ids of elements are read off the HTML: `$("map")` is a canvas, and an id that the page
does not have is an error. The compiler is fetched once by npm, at the version and hash that
`scripts/page_types/package-lock.json` names; where there is no node, this says so and ends well.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "regard" / "views" / "page_files"
TYPES = ROOT / "scripts" / "page_types"
OUT = ROOT / "out" / "page-types"
OPTIONS = {
    "allowJs": True, "checkJs": True, "noEmit": True, "strict": True, "strictNullChecks": False,
    "noImplicitAny": False, "target": "es2023", "lib": ["es2023", "dom", "dom.iterable"],
    "types": [], "skipDefaultLibCheck": True,
}  # fmt: skip


def compiler(out: Path = OUT) -> Path | None:
    """Where the compiler is, if it is installed and there is something to run it."""
    found = out / "node_modules" / "typescript" / "bin" / "tsc"
    return found if shutil.which("node") and found.is_file() else None


def install(out: Path = OUT) -> None:
    """Fetch the compiler that the lock names."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(TYPES / name, out / name)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run(command, cwd=out, check=True)


def ids(page: Path = PAGE) -> dict[str, str]:
    """The tag of each id that the page's HTML has."""
    found: dict[str, str] = {}
    for path in sorted(page.glob("*.html")):
        for tag, name in re.findall(r"<(\w+)\b[^>]*?\sid=\"([\w-]+)\"", path.read_text("utf-8")):
            if name in found:
                raise SystemExit(f"{path.name}: the id {name!r} is there twice")
            found[name] = tag
    return found


def errors(page: Path = PAGE, out: Path = OUT) -> list[str]:
    """What the compiler says of the scripts of a page, one text an error."""
    held = compiler(out)
    assert held is not None
    named = "".join(
        f"  {name!r}: HTMLElementTagNameMap[{tag!r}];\n" for name, tag in ids(page).items()
    )
    (out / "ids.d.ts").write_text(f"interface Ids {{\n{named}}}\n", "utf-8")
    files = [str(out / "ids.d.ts"), str(TYPES / "page.d.ts"), *map(str, sorted(page.glob("*.js")))]
    settings = out / "tsconfig.json"
    settings.write_text(json.dumps({"compilerOptions": OPTIONS, "files": files}), "utf-8")
    command = ["node", str(held), "--pretty", "false", "-p", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = re.sub(r"\n +", " ", done.stdout + done.stderr).splitlines()
    if done.returncode and not said:
        said = [f"the compiler ended with {done.returncode}"]
    return said if done.returncode else []


def main() -> None:
    if compiler() is None:
        if not (shutil.which("node") and shutil.which("npm")):
            print("types of the page: left out, there is no node and npm on the path")
            return
        try:
            install()
        except subprocess.CalledProcessError as failed:
            print(f"types of the page: left out, npm could not fetch the compiler ({failed})")
            return
    said = errors()
    print("\n".join(said) or f"types of the page: {len(list(PAGE.glob('*.js')))} scripts hold")
    sys.exit(bool(said))


if __name__ == "__main__":
    main()
