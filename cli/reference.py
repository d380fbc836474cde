"""Write the generated pages of doc/reference: `python -m cli.reference [--check]`."""

import sys
from pathlib import Path

import typer.main
from typer.cli import get_docs_for_click

REFERENCE = Path(__file__).parents[1] / "doc" / "reference"


def pages() -> dict[str, str]:
    """Return each generated page's text by file name."""
    from bottleneck import schema
    from cli.main import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="cluster")  # type: ignore[arg-type]
    text = get_docs_for_click(obj=command, ctx=context, name="cluster", title="The cluster command")
    return {"cli.md": text.rstrip() + "\n", **schema.pages()}


def main() -> int:
    """Write the pages, or with --check name those that are not current."""
    stale = [name for name, text in pages().items() if _read(REFERENCE / name) != text]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"doc/reference/{name} is not current: make reference")
        return 1 if stale else 0
    for name in stale:
        (REFERENCE / name).write_text(pages()[name], encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
