"""The command about the cache of this machine: cache."""

import json
from typing import Annotated

import typer

from ftae.cli.options import Json, print_table, to_stderr
from ftae.errors import FtaeError

app = typer.Typer()
PANEL = "Results"


@app.command(rich_help_panel=PANEL)
def cache(
    clean: Annotated[bool, typer.Option("--clean", help="Remove what no process uses.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0.0, help="Remove only what was not used for so long.")
    ] = None,
    to_gb: Annotated[
        float | None, typer.Option(metavar="GB", min=0.0, help="Remove the least recently used, down to this size.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what the cache of this machine holds, or what was removed of it: kind, size, last use, what it is."""
    from ftae.api.cache import cache_entries, clean_cache
    from ftae.wording import size

    if not clean and (older_than, to_gb) != (None, None):
        raise FtaeError("--older-than and --to-gb have no effect without --clean")
    found = clean_cache(older_than_days=older_than or 0.0, to_gb=to_gb or 0.0) if clean else cache_entries()
    total = sum(entry.num_bytes for entry in found)
    if as_json:
        entries = [
            vars(entry) | {"folder": str(entry.folder), "last_used": entry.last_used.isoformat()} for entry in found
        ]
        typer.echo(json.dumps({"removed" if clean else "entries": entries, "num_bytes": total}))
        return
    rows = [
        {
            "kind": entry.kind,
            "size": size(entry.num_bytes),
            "last used": f"{entry.last_used:%Y-%m-%d %H:%M}",
            "in use": "yes" if entry.in_use else None,
            "what": entry.what or None,
        }
        for entry in found
    ]
    print_table("", rows)
    to_stderr(f"{len(found)} {'entry' if len(found) == 1 else 'entries'}, {size(total)}{' removed' if clean else ''}")
