"""Write the generated pages of doc: `python -m cli.reference [--check]`."""

import sys
from pathlib import Path

import typer.main
from typer.cli import get_docs_for_click

from bottleneck.diagnosis import causes_page
from bottleneck.profile import schema
from bottleneck.telemetry import exporter, sample_schema
from cli import rooms, units_page

DOC = Path(__file__).resolve().parents[1] / "doc"


def pages() -> dict[str, str]:
    """Return each generated page's text by its path below doc/."""
    return {
        "reference/cli.md": command_page(),
        "reference/metrics.md": exporter.reference(),
        "reference/samples.md": sample_schema.page(),
        "reference/units.md": units_page.page(),
        "explanation/architecture.md": rooms.filled(_read(DOC / "explanation/architecture.md")),
        "explanation/bottlenecks.md": causes_page.page(),
        **{path.relative_to(DOC).as_posix(): text for path, text in schema.reference_files().items()},
    }


def command_page() -> str:
    """Return the page about the `cluster` command, made from what its `--help` says."""
    from cli.main import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="cluster", **command.context_settings)
    text = get_docs_for_click(obj=command, ctx=context, name="cluster", title="The cluster command")
    return text.rstrip() + "\n"


def stale_pages() -> list[str]:
    """Return the generated pages that are missing or not current, by their path below doc/."""
    return [name for name, text in pages().items() if _read(DOC / name) != text]


def main() -> int:
    """Write the pages, or with --check name those that are not current."""
    stale = stale_pages()
    if "--check" in sys.argv[1:]:
        for name in stale:
            sys.stderr.write(f"doc/{name} is not current; next: make reference\n")
        return 1 if stale else 0
    texts = pages()
    for name in stale:
        (DOC / name).parent.mkdir(parents=True, exist_ok=True)
        (DOC / name).write_text(texts[name], encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
