"""`python -m tools.site build|serve`: the docs site in build/site, every warning an error; `serve` shows it."""

import argparse
import functools
import http.server
import os
import sys
import tempfile
from pathlib import Path

from tools.site.nav import MOVED, ROOT
from tools.site.stage import stage

_HERE = Path(__file__).resolve().parent


def build(out: Path) -> int:
    """Build the site. Returns 0 if there was no warning."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as folder:
        stage(source := Path(folder) / "source")
        arguments = ["-b", "html", "-c", str(_HERE), "-d", str(Path(folder) / "trees"), "-W", "--keep-going", "-q"]
        failed = build_main([*arguments, str(source), str(out)])
    redirect(out)
    return failed


def redirect(out: Path) -> None:
    """Write a page at each old address that redirects to the new one."""
    for old, new in MOVED.items():
        page = out / f"{old}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        target = f"{os.path.relpath(out / new, page.parent)}.html"
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><title>Moved</title><meta http-equiv="refresh" content="0; '
            f'url={target}"><p>This page is now part of <a href="{target}">{new}</a>.</p>\n',
            encoding="utf-8",
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.add_argument("what", choices=("build", "serve"))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    os.chdir(tempfile.gettempdir())  # so that no .env file is read
    failed = build(given.out.resolve() if given.out.is_absolute() else ROOT / given.out)
    if failed or given.what == "build":
        return failed
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(given.out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", given.port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
