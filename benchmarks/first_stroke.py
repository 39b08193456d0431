"""How soon after opening the studio its first stroke is on the screen, in Chromium.

    draw export runs/mnist page.html && python benchmarks/first_stroke.py page.html

Milliseconds from the start of the navigation, each the median of --times openings, every one in a fresh context. An
address of `draw serve` works as well. Needs playwright and Chromium.
"""

import argparse
import os
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import sync_playwright

# Run before the page's own scripts; the moments are kept in window.seen.
WATCH = """
const seen = window.seen = {}, see = (name) => (seen[name] ??= performance.now());
window.Worker = class extends Worker {
  constructor(...given) { super(...given); see("the worker is begun"); }
  postMessage(...given) { super.postMessage(...given); if (given[0].draw) see("the drawing is asked for"); }
};
document.addEventListener("DOMContentLoaded", () => see("the page is parsed"));
const look = () => {
  const output = document.querySelector("#watch-transport output");
  if (/glimpse [1-9]/.test(output?.textContent)) see("the first stroke is shown");
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


def main() -> None:
    """Open the page again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="a file of draw export, or an address of draw serve")
    parser.add_argument("--times", type=int, default=10, help="default 10")
    options = parser.parse_args()
    address = options.page if "://" in options.page else Path(options.page).resolve().as_uri()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    openings = []
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # it refuses to run as root with one
        browser = playwright.chromium.launch(executable_path=program, args=sandbox)
        for _ in range(options.times):
            context = browser.new_context()
            page = context.new_page()
            page.add_init_script(WATCH)
            page.goto(address)
            while "the first stroke is shown" not in (seen := page.evaluate("window.seen")):
                page.wait_for_timeout(20)
            openings.append(seen)
            context.close()
        browser.close()
    for name in sorted(openings[0], key=openings[0].__getitem__):
        times = [seen[name] for seen in openings]
        print(f"{name:<26} {statistics.median(times):6.0f} ms  ({min(times):.0f} to {max(times):.0f})")
    print("load average", *(f"{load:.1f}" for load in os.getloadavg()), "on", os.cpu_count(), "cores")


if __name__ == "__main__":
    main()
