"""Commands, flags, links, methods and images that README and docs/ name exist. Decisions have numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from foveate.engines.errors import UserError
from foveate.export import lowering
from foveate.runtime import cli, pipeline

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The command lines of the shell blocks, as words; comments and line joins resolved."""
    lines = (
        line
        for block in blocks(text, "(?:sh|bash|console)")
        for line in block.replace("\\\n", " ").splitlines()
    )
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def shown_commands() -> list[tuple[str, list[str]]]:
    return [
        (page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page.read_text())
    ]


def verb_of(words: list[str]) -> tuple[str, list[str]] | None:
    """("run", its arguments) of ``foveate run ...`` and of ``python export/build.py ...``."""
    names = [Path(word).name for word in words]
    if "foveate" in names[:2]:
        at = names.index("foveate")
        return (words[at + 1], words[at + 2 :]) if len(words) > at + 1 else None
    if "build.py" in names[:2]:
        return "build", words[names.index("build.py") + 1 :]
    return None


def help_of(verb: str, capsys) -> str:
    with pytest.raises(SystemExit) as done:
        cli.main([verb, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


def test_every_verb_and_flag_that_is_shown_exists(capsys):
    seen = set()
    for page, words in shown_commands():
        if (found := verb_of(words)) is None:
            continue
        verb, arguments = found
        if verb in ("--help", "--version", "VERB"):
            continue
        assert verb in cli.VERBS, f"{page}: foveate {verb}"
        flags = [a.split("=")[0] for a in arguments if a.startswith("--")]
        text = help_of(verb, capsys)
        for flag in flags:
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), f"{page}: foveate {verb} {flag}"
        seen.add(verb)
    assert {"build", "compile", "run", "check"} <= seen


def test_every_verb_is_described_in_the_readme():
    for verb in cli.VERBS:
        assert f"foveate {verb}" in README, verb


def test_make_targets_and_scripts_that_are_shown_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = [(page, words) for page, words in shown_commands() if words[0] == "make"]
    assert {"demo", "test"} <= {words[1] for _, words in shown} <= targets
    for page, words in shown_commands():
        for word in words:
            if word.endswith(".py") and "/" in word:
                assert (ROOT / word).is_file(), f"{page}: {word}"


def test_the_checks_of_a_change_run_the_commands_of_the_readme():
    script = ROOT / ".ci/run"
    lines = script.read_text().splitlines()
    assert script.stat().st_mode & 0o111 and "set -eu" in lines
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]


def test_the_two_commands_come_first():
    assert blocks(README, "sh")[0].split()[:2] == ["make", "demo"]
    assert [words[:2] for words in commands(README)[:2]] == [["make", "demo"], ["make", "test"]]


def anchors(text: str) -> set[str]:
    titles = re.findall(
        r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_local_links_resolve(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{page.name}: {target}"


def test_paths_named_in_code_exist():
    """``runtime/images/processor.py`` in backquotes is a claim, too."""
    pattern = r"`((?:export|calib|engines|runtime|jetson|scripts|tests|docs)/[\w./-]*)`"
    for page in PAGES:
        for name in re.findall(pattern, page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_tests_that_pages_name_exist():
    """A test in backquotes, with or without the name of a function, exists."""
    for page in PAGES:
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
            assert (ROOT / file).is_file(), f"{page.name}: {file}"
            assert f"def {name}(" in (ROOT / file).read_text() or not name, f"{page.name}: {file}::{name}"


def test_the_table_of_dialects_is_the_folder_of_dialects():
    rows = re.findall(r"^\| `(\w+)` \|", README.split("## What has run where")[1], flags=re.MULTILINE)
    assert rows == lowering.names()


def test_the_python_example_uses_names_that_exist():
    from foveate import runtime

    (example, *_) = [block for block in blocks(README, "python") if "foveate" in block]
    tree = compile(example, "README.md", "exec")
    assert "Pipeline" in tree.co_names
    for name in re.findall(r"\bpipe\.(\w+)", example):
        assert hasattr(runtime.Pipeline, name), name
    fields = pipeline.Answer.__dataclass_fields__
    shown = re.findall(r"\banswer\.(\w+)", example)
    assert shown and set(shown) <= set(fields)


def test_decisions_are_numbered_without_gaps_and_say_why():
    pages = sorted((ROOT / "docs/decisions").glob("0*.md"))
    index = (ROOT / "docs/decisions/README.md").read_text()
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert re.match(rf"# {page.name[:4]}[.:] .+", text), page.name
        assert "20" in text.splitlines()[2], f"{page.name}: a date under the title"
        assert f"| [{page.name[:4]}]({page.name}) | {text.splitlines()[0][8:]} |" in index, page.name
        assert len(text.split()) < 700, f"{page.name}: half a page, not an essay"


def test_the_table_of_moved_files_leads_to_files_that_exist():
    lines = (ROOT / "docs/decisions/0021-moved-files.txt").read_text().splitlines()
    assert len(lines) > 100
    assert not [line for line in lines if not (ROOT / line.split(" -> ")[1]).exists()]


def test_the_changelog_knows_this_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[1]
    assert re.search(
        rf"^## {re.escape(version)}, 20\d\d-\d\d-\d\d$",
        (ROOT / "CHANGELOG.md").read_text(),
        flags=re.MULTILINE,
    )


def test_an_unknown_verb_would_be_noticed():
    """The check above rests on these two."""
    assert verb_of(["foveate", "frobnicate", "x"]) == ("frobnicate", ["x"])
    assert verb_of([".venv/bin/python", "export/build.py", "--model", "m"]) == ("build", ["--model", "m"])
    with pytest.raises(UserError):
        cli._dispatch(["frobnicate"])
