"""Documentation is true: links, commands, generated pages, names of metrics, no path of one machine."""

from __future__ import annotations

import ast
import re
import shlex
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import yaml
from hub_failures import HUB
from vllm_failures import ENGINE_RULES as VLLM

from bottleneck.diagnosis.causes import CAUSES
from bottleneck.diagnosis.causes.base import fill
from bottleneck.diagnosis.causes_page import COMMAND, PLACEHOLDERS
from bottleneck.profile import load_profile
from bottleneck.profile.paths import ENGINE_MAP, profiles_directory
from bottleneck.telemetry import exporter
from netboot.boot import metrics as boot_metrics

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "doc"
FENCE = re.compile(r"^(```+)([^\n`]*)\n(.*?)^\1[ ]*$\n?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
OUTPUT = re.compile(r"<!-- output: (.+?) -->\n(```+)[^\n]*\n(.*?)^\2", re.DOTALL | re.MULTILINE)
METRIC = re.compile(r"\bcluster_[a-z_]+[a-z](?![a-z_]*[(.])")
SHELLS = ("", "bash", "sh", "console")


def documents() -> list[Path]:
    """Return the pages at the root and every one below doc/."""
    return [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOC.rglob("*.md"))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def written_by_hand() -> list[Path]:
    """Return the pages that are not generated; those come from the program itself."""
    references = ("cli", "metrics", "profile", "samples")
    generated = (*(f"reference/{name}.md" for name in references), "explanation/bottlenecks.md")
    return [path for path in documents() if path not in {DOC / name for name in generated}]


def prose(path: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("\n", path.read_text(encoding="utf-8"))


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """Return the fenced blocks of some languages."""
    for found in FENCE.finditer(path.read_text(encoding="utf-8")):
        if found[2].strip() in languages:
            yield found[3]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(path)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        kept = "".join(
            character for character in text if character in " -_" or unicodedata.category(character)[0] in "LN"
        )
        slug = base = kept.replace(" ", "-")
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


# -- links


def links(path: Path) -> list[str]:
    """Return the targets of a page's links that stay in the repository."""
    targets = LINK.findall(INLINE_CODE.sub(_without_links, prose(path)))
    return [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def _without_links(code: re.Match[str]) -> str:
    return code[0].replace("](", "] (")


@pytest.mark.parametrize("path", documents(), ids=named)
def test_every_relative_link_resolves(path: Path) -> None:
    for target in links(path):
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.is_relative_to(ROOT), f"{named(path)}: {target} leads out of the repository"
        assert found.exists(), f"{named(path)}: {target} does not exist"
        if found.is_dir():
            assert any(found.iterdir()), f"{named(path)}: {target} is empty"
        if anchor:
            assert found.suffix == ".md", f"{named(path)}: {target} has an anchor and is no page"
            assert anchor in anchors(found), f"{named(path)}: no heading {anchor} in {named(found)}"


def test_the_map_leads_to_every_page() -> None:
    linked = {(DOC / target.partition("#")[0]).resolve() for target in links(DOC / "README.md")}
    missing = {named(path) for path in DOC.rglob("*.md")} - {named(path) for path in linked if path.is_file()}
    assert missing <= {"doc/README.md"}


def test_anchors_are_made_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b_c`, d\n\n```\n# not a heading\n```\n\n## [Link](x.md) 2\n\n## Twice\n\n## Twice\n")
    assert anchors(page) == {"a-b_c-d", "link-2", "twice", "twice-1"}


def promises() -> list[tuple[str, list[str]]]:
    """Return the promises of the page on security, each with the tests that are named beside it."""
    text = (DOC / "explanation" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text.partition("## Promises and their tests")[2], re.MULTILINE)
    return [(promise, re.findall(r"`([^`]+)`", tests)) for promise, tests in rows if promise not in ("Promise", "---")]


@pytest.mark.parametrize(("promise", "tests"), promises(), ids=[promise[:40] for promise, _ in promises()])
def test_every_promise_of_security_has_a_test_beside_it(promise: str, tests: list[str]) -> None:
    assert tests, f"{promise}: no test"
    for name in tests:
        path, _, function = name.partition("::")
        defined = {
            each.name
            for each in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert function.startswith("test_") and function in defined, f"{promise}: {name} does not exist"


def test_there_are_promises() -> None:
    assert len(promises()) >= 20


# -- commands


@pytest.fixture(scope="module")
def command() -> Any:
    """Return the `cluster` command."""
    from cli.main import app

    return typer.main.get_command(app)


def shell_commands(text: str) -> Iterator[list[str]]:
    """Return the words of each `cluster` command of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("();<>|&"):
                yield from _cluster_words(words)
                words = []
            else:
                words.append(word)


def _cluster_words(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] == "sudo" or "=" in words[0] or words[0] in ("-E", "env", "time")):
        words = words[1:]
    if words and words[0].rpartition("/")[2] == "cluster":
        yield words[1:]


def problem(command: Any, words: list[str], name: str = "cluster", parent: Any = None) -> str | None:
    """Return why a command line does not parse, or None; nothing is run."""
    try:
        context = command.make_context(name, list(words), parent=parent)
        if not hasattr(command, "commands"):
            return None
        rest = [*(getattr(context, "_protected_args", None) or []), *context.args]
        sub_name, sub, rest = command.resolve_command(context, rest)
        return problem(sub, rest, sub_name, context)
    except typer.Exit:
        return None  # --help
    except Exception as error:  # click's, which typer carries under a private name
        return getattr(error, "message", None) or str(error) or type(error).__name__


def unknown_word(command: Any, words: list[str]) -> str | None:
    """Return the group, command or option that does not exist, or None; arguments are not looked at."""
    for word in words:
        if word == "--" or getattr(command, "ignore_unknown_options", False):
            return None
        if word.startswith("-"):
            options = {text for each in command.params for text in (*each.opts, *each.secondary_opts)}
            if word.partition("=")[0] not in options | {"-h", "--help"}:
                return word
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return None if word == "..." else word
            command = command.commands[word]
    return None


@pytest.mark.parametrize("path", written_by_hand(), ids=named)
def test_every_command_in_a_block_parses(path: Path, command: Any) -> None:
    for block in blocks(path, *SHELLS):
        for words in shell_commands(block):
            found = problem(command, words)
            assert found is None, f"{named(path)}: cluster {shlex.join(words)}: {found}"


@pytest.mark.parametrize("path", documents(), ids=named)
def test_every_command_in_a_sentence_exists(path: Path, command: Any) -> None:
    for _, code in INLINE_CODE.findall(prose(path)):
        if code.startswith("cluster "):
            found = unknown_word(command, code.split()[1:])
            assert found is None, f"{named(path)}: `{code}`: there is no {found}"


def test_every_example_of_the_help_parses(command: Any) -> None:
    seen = 0
    for each in leaves(command):
        texts = re.split(r"\n| · | \| |Examples:", f"{each.help or ''}\n{each.epilog or ''}")
        for text in (text.strip() for text in texts):
            if text.startswith("cluster "):
                seen += 1
                found = problem(command, shlex.split(text)[1:])
                assert found is None, f"--help of {each.name}: {text}: {found}"
    assert seen >= 20


def test_every_command_that_a_failure_names_parses(command: Any) -> None:
    """The reason of a failure ends with the next command: it is data beside the rule."""
    for rule in {id(rule): rule for rule in (*VLLM.rules, *HUB.rules)}.values():
        for text in rule.next:
            shown = re.sub(r"\{\w+\}", "1", text)
            found = problem(command, shlex.split(shown)[1:])
            assert found is None, f"{rule.name}: {shown}: {found}"


def leaves(command: Any) -> Iterator[Any]:
    """Return every command below a group."""
    if not hasattr(command, "commands"):
        yield command
        return
    for each in command.commands.values():
        yield from leaves(each)


@pytest.mark.parametrize("name", CAUSES)
def test_every_command_that_is_advised_exists(name: str, command: Any) -> None:
    advice = [fill(line, PLACEHOLDERS) for line in CAUSES[name].advice]
    for line in (found for text in advice for found in COMMAND.findall(text)):
        found = unknown_word(command, line.split()[1:])
        assert found is None, f"{name}: {line}: there is no {found}"


def test_a_wrong_command_is_seen(command: Any) -> None:
    assert problem(command, ["bench", "--requests", "16"]) is None
    assert problem(command, ["lab", "up", "--help"]) is None
    for words in (
        [],
        ["lab"],
        ["bnech"],
        ["lab", "upp"],
        ["bench", "--request", "16"],
        ["bench", "--requests", "many"],
        ["lab", "slow"],
        ["run", "compare", "only-one"],
    ):
        assert problem(command, words), words
    assert unknown_word(command, ["lab", "throttle", "LINK", "--restore"]) is None
    assert unknown_word(command, ["lab", "throttle", "LINK", "--undo"]) == "--undo"
    assert unknown_word(command, ["lap", "up"]) == "lap"
    assert list(shell_commands("sudo -E .venv/bin/cluster lab up | tee x  # why\nls; cluster status --json")) == [
        ["lab", "up"],
        ["status", "--json"],
    ]


@pytest.mark.parametrize("path", documents(), ids=named)
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join(blocks(path, *SHELLS)) + "\n".join(code for _, code in INLINE_CODE.findall(prose(path)))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets


# -- what is generated, and what is filled in


def test_generated_pages_are_current() -> None:
    from cli import reference

    pages = reference.pages()
    assert {"reference/cli.md", "reference/profile.md", "reference/metrics.md", "explanation/bottlenecks.md"} <= set(
        pages
    )
    assert reference.stale_pages() == [], "make reference"


def test_the_page_of_bottlenecks_has_every_class_and_no_gap() -> None:
    from bottleneck.diagnosis import causes_page

    text = causes_page.page()
    for name in CAUSES:
        assert f"\n## `{name}`\n" in text
    assert not re.search(r"\{\w*\}", text)


@pytest.mark.parametrize("path", documents(), ids=named)
def test_no_output_is_left_to_fill_in(path: Path) -> None:
    empty = [command for command, _, text in OUTPUT.findall(path.read_text(encoding="utf-8")) if not text.strip()]
    assert empty == [], f"{named(path)}: put in what these print"


# -- what else can be held against the code


def is_engine(part: dict[str, Any]) -> bool:
    return all(isinstance(each, dict) and {"engine", "roles"} & set(each) for each in part.values())


def section_snippets() -> list[Any]:
    """Return the YAML blocks that show a part of a profile."""
    found = []
    for path in written_by_hand():
        for index, block in enumerate(blocks(path, "yaml")):
            part = yaml.safe_load(block)
            # Entries of the engine map and of the engines' interfaces: tests/unit/test_engine_interface.py.
            if isinstance(part, dict) and "scrape_configs" not in part and not is_engine(part):
                found.append(pytest.param(part, id=f"{named(path)}-{index}"))
    return found


@pytest.mark.parametrize("part", section_snippets())
def test_every_part_of_a_profile_is_valid(part: dict[str, Any], tmp_path: Path) -> None:
    document = yaml.safe_load((profiles_directory() / "embedded.yaml").read_text(encoding="utf-8"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**document, **part}), encoding="utf-8")
    (tmp_path / ENGINE_MAP).write_bytes((profiles_directory() / ENGINE_MAP).read_bytes())
    assert load_profile(tmp_path / "mine.yaml").name == "embedded"


@pytest.mark.parametrize("path", written_by_hand(), ids=named)
def test_every_metric_of_ours_exists(path: Path) -> None:
    code = "\n".join([*blocks(path, "yaml", "promql"), *(text for _, text in INLINE_CODE.findall(prose(path)))])
    settings = {
        *("cluster_profile", "cluster_store", "cluster_directory", "cluster_images"),
        "cluster_reprovision_on_change",
    }
    assert set(METRIC.findall(code)) - settings <= {metric.name for metric in exporter.METRICS} | {
        name for name, _, _ in boot_metrics.GAUGES
    }


@pytest.mark.parametrize("path", [*documents(), DOC / "reference" / "profile.schema.json"], ids=named)
def test_no_path_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert re.findall(r"(?<![\w.])/(?:work|root|home|tmp|Users)(?:/\S*)?(?![\w-])", text) == []
