"""report.html in a real browser: every picture loads, and a phone scrolls it in one direction only."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dlgpu import report
from dlgpu.run import Config, Run

# What the browser says about the page, written into it once all is loaded.
PROBE = """<script>addEventListener("load", () => {
  const pictures = [...document.images].map(i => i.complete && i.naturalWidth > 0);
  const page = document.documentElement;
  document.body.dataset.probe = [pictures.length, pictures.every(Boolean), page.scrollWidth <= innerWidth].join(" ");
})</script></body>"""


@pytest.mark.parametrize("width", [1200, 500])
def test_the_report_fits_the_screen(width: int, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    Run.create(tmp_path / "run", Config("lenet5", epochs=1, limit=100)).fit()
    page = report.write(tmp_path / "run")
    page.write_text(page.read_text().replace("</body>", PROBE))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found is not None, done.stderr
    assert found[1] == "4 true true"  # curves, confusion matrix, mistakes, filters
