"""A real browser that opens a page and says what a script finds in it.

With REGARD_SCREENSHOTS=folder a picture of each page is left there, for people to look at.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from regard.views.page import page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
in_browser = pytest.mark.skipif(not BROWSER, reason="no chromium on the path")

# Runs in the page after it is ready, and leaves what it found where --dump-dom shows it.
REPORT = """
const found = await (async () => { %s })();
found.ready = globalThis.READY;
found.nodes = document.querySelectorAll("*").length;
found.requests = performance.getEntriesByType("resource").map((x) => x.name);
const place = document.createElement("pre");
place.id = "found";
place.hidden = true;
place.textContent = JSON.stringify(found);
document.body.append(place);
"""


def visited(run, script: str, tmp_path, hash_: str = "", size: str = "1280,900") -> dict:
    """Open a page, run a script in it, and give what the script returns.

    The console must stay clean, the network unasked, and the page light.
    """
    path = tmp_path / "page.html"
    path.write_text(page(run, REPORT % script), encoding="utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}",
        "--enable-logging=stderr", "--hide-scrollbars",
    ]  # fmt: skip
    options = {"capture_output": True, "text": True, "timeout": 120, "check": True}
    folder = os.environ.get("REGARD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = os.environ.get("PYTEST_CURRENT_TEST", "page").split("::")[-1].split(" ")[0]
        shot = (Path(folder) / re.sub(r"[^\w-]+", "-", name)).resolve()
        command.append(f"--screenshot={shot}.png")
    done = subprocess.run([*command, "--dump-dom", path.as_uri() + hash_], **options)
    consoled = [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    assert not consoled, consoled
    found = re.search(r'<pre id="found"[^>]*>(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    said = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert said["requests"] == []
    assert said["nodes"] < 2000
    return said
