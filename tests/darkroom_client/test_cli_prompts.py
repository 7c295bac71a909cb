"""Many prompts at once, from stdin and from templates, against the real server."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom_client._templates import Templates
from tests.support import settle

LINES = b"""# shapes
a red circle

  a green star\r
#a comment
a blue heart"""
LONG = b"red " * 3000
CODE = "from darkroom_client.cli import main; main()"


@pytest.fixture
def address(server):
    return server.address


def said(result):
    """What a command wrote to stderr, without a box's borders."""
    return " ".join(re.sub("[╭╮╰╯│─]", " ", result.stderr).split())


def prompts(result):
    """The prompts of the jobs that the server accepted, in the order of the jobs."""
    lines = map(json.loads, result.stdout.splitlines())
    accepted = {line["job"]: line for line in lines if line["event"] == "accepted"}
    return [accepted[job]["parameters"]["prompt"] for job in sorted(accepted)]


class TestStdin:
    def test_each_line_is_a_prompt(self, darkroom):
        result = darkroom("generate", "-", "--steps", 1, "--seed", 3, "--out", "new/", stdin=LINES)
        assert result.stdout.splitlines() == [
            "new/1-a-red-circle-3.png",
            "new/2-a-green-star-3.png",
            "new/3-a-blue-heart-3.png",
        ]
        assert all(Path(path).exists() for path in result.stdout.splitlines())

    def test_lines_and_arguments(self, darkroom):
        result = darkroom("generate", "first", "-", "last", "--steps", 1, "--json", stdin=LINES)
        assert prompts(result) == ["first", "a red circle", "a green star", "a blue heart", "last"]
        lines = {line["job"]: line.get("line") for line in map(json.loads, result.stdout.splitlines())}
        assert lines == {0: None, 1: 2, 2: 4, 3: 6, 4: None}

    def test_of_an_edit(self, darkroom):
        darkroom("generate", "a", "--steps", 1, "--out", "a.png")
        made = darkroom("edit", "a.png", "-", "--steps", 2, "--seed", 3, stdin=LINES).stdout.splitlines()
        assert made == ["1-a-red-circle-3.png", "2-a-green-star-3.png", "3-a-blue-heart-3.png"]

    def test_a_failing_line_leaves_the_others(self, darkroom):
        lines = b"a red circle\n\n" + LONG + b"\na blue heart"
        result = darkroom("generate", "-", "--steps", 1, "--seed", 3, exit_code=1, stdin=lines)
        assert result.stdout.splitlines() == ["1-a-red-circle-3.png", "3-a-blue-heart-3.png"]
        assert result.stderr.startswith("error: line 3: red red ")
        assert result.stderr.endswith("…: PROMPT: must have up to 10000 characters, not 11999\n")
        (line,) = map(json.loads, darkroom("generate", "-", "--json", exit_code=1, stdin=LONG).stdout.splitlines())
        assert (line["event"], line["job"], line["line"]) == ("error", 0, 1)

    @pytest.mark.parametrize("stdin", [b"", b"\n# a comment\n", b"a\xff"])
    def test_what_has_no_prompts(self, darkroom, stdin):
        assert "- reads prompts, one a line" in said(darkroom("generate", "-", exit_code=2, stdin=stdin))


def begun(folder, server, *arguments, stdin, jobs):
    """`darkroom generate - --json` in a process that has heard of so many accepted jobs, and what it said so far."""
    environment = {**os.environ, "DARKROOM_ADDRESS": server.address}
    command = [sys.executable, "-c", CODE, "generate", "-", "--json", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=-1, stdout=-1, stderr=-1)
    process.stdin.write(stdin)
    process.stdin.close()
    lines = []
    while sum(line["event"] == "accepted" for line in lines) < jobs:
        lines.append(json.loads(process.stdout.readline()))
    return process, lines


def test_some_run_together_and_the_others_wait(server, tmp_path):
    stdin = b"\n".join(b"prompt %d" % index for index in range(7))
    with server.paused():
        process, lines = begun(tmp_path, server, "--jobs", "3", "--steps", "1", stdin=stdin, jobs=3)
    with process:
        lines += map(json.loads, process.stdout)
        assert process.stderr.read() == b""
    running, most = set(), 0
    for line in lines:
        (running.discard if line["event"] == "completed" else running.add)(line["job"])
        most = max(most, len(running))
    assert (most, sum(line["event"] == "completed" for line in lines)) == (3, 7)


def test_ctrl_c_stops_all(server, tmp_path):
    with server.paused():
        process, _ = begun(tmp_path, server, "--steps", "20", stdin=LINES, jobs=3)
        process.send_signal(signal.SIGINT)
        with process:
            assert process.stderr.read() == b"interrupted\n"
            assert b"completed" not in process.stdout.read()
        assert process.returncode == 130
    settle(server)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--jobs", 0], ["--jobs", 65], ["--samples", 0], ["--samples", 1001]])
def test_counts_out_of_range(darkroom, arguments):
    most = {"--jobs": 64, "--samples": 1000}[arguments[0]]
    stderr = said(darkroom("generate", "a", *arguments, exit_code=2))
    assert f"'{arguments[0]}': must be from 1 to {most}, not {arguments[1]}" in stderr


# ----------------------------------------------------------------------------------------------------------- templates


@pytest.fixture
def wildcards(tmp_path):
    folder = tmp_path / "words"
    (folder / "shapes").mkdir(parents=True)
    (folder / "colour.txt").write_text("red\n# a comment\nblue\n")
    (folder / "shapes/round.txt").write_text("{big |}circle\n")
    (folder / "loop.txt").write_text("a __loop__\n")
    return folder


class TestTemplates:
    def test_all_combinations_in_order(self):
        template = "{red|blue} circle on a {green|white} background"
        assert Templates().combinations(template, 4) == [
            "red circle on a green background",
            "red circle on a white background",
            "blue circle on a green background",
            "blue circle on a white background",
        ]

    def test_wildcards_are_files(self, wildcards):
        made = Templates(wildcards).combinations("a __colour__ __shapes/round__", 9)
        assert made == ["a blue big circle", "a blue circle", "a red big circle", "a red circle"]

    def test_samples_are_different_and_follow_the_seed(self):
        template = "{a|b|c|d|e|f} {1|2|3|4|5|6}"
        samples = Templates().samples
        first = samples(template, 8, 7)
        assert len(set(first)) == 8
        assert samples(template, 8, 7) == first
        assert samples(template, 3, 7) == first[:3]
        assert samples(template, 8, 8) != first
        assert set(first) <= set(Templates().combinations(template, 36))

    def test_there_are_no_more_samples_than_prompts(self):
        assert sorted(Templates().samples("a {|big} circle", 5, 7)) == ["a big circle", "a circle"]
        assert Templates().samples("a circle", 5, 7) == ["a circle"]

    @pytest.mark.parametrize(
        ("template", "problem"),
        [
            ("a {red|", "'{red|' in 'a {red|' cannot be read: write {one|two} for a choice"),
            ("{a|b|c}{a|b|c}", "has more than 8 combinations"),
            ("a __color__", "there is no wildcard 'color' (did you mean 'colour'?) in "),
            ("__loop__", "needs a wildcard or variable within itself"),
            ("${x}", "Variable x is not defined"),
        ],
    )
    def test_what_is_no_template(self, wildcards, template, problem):
        with pytest.raises(ValueError, match=re.escape(problem)):
            Templates(wildcards).combinations(template, 8)

    def test_wildcards_need_a_folder(self):
        with pytest.raises(ValueError, match="no wildcard 'colour' as no folder of them is given"):
            Templates().samples("__colour__", 1, None)

    def test_the_extra_is_named(self, monkeypatch, darkroom):
        monkeypatch.setitem(sys.modules, "dynamicprompts.wildcards", None)
        stderr = darkroom("generate", "a", "--combinations", exit_code=1).stderr
        assert "templates need the extra `prompts`" in stderr
        assert "pip install 'darkroom-diffusion[prompts]'" in stderr


def test_every_combination_is_a_picture(darkroom, wildcards):
    run = ("generate", "{red|blue} circle", "--combinations", "--steps", 1, "--seed", 3)
    assert darkroom(*run).stdout.splitlines() == ["1-red-circle-3.png", "2-blue-circle-3.png"]
    result = darkroom(
        "generate", "-", "--combinations", "--wildcards", wildcards, "--steps", 1, "--json", stdin=b"__colour__\n{a|b}"
    )
    assert prompts(result) == ["blue", "red", "a", "b"]


def test_samples_are_drawn_by_the_seed(darkroom):
    run = ("generate", "{a|b|c|d} {e|f|g|h}", "--samples", 3, "--steps", 1, "--json", "--seed", 3)
    made = prompts(darkroom(*run))
    assert made == prompts(darkroom(*run)) == Templates().samples("{a|b|c|d} {e|f|g|h}", 3, 3)


def test_braces_are_literal_unless_asked_for(darkroom):
    assert prompts(darkroom("generate", "a {red|blue} __x__ #1", "--steps", 1, "--json")) == ["a {red|blue} __x__ #1"]


def test_all_wrong_templates_are_named_at_once(darkroom):
    stderr = said(darkroom("generate", "-", "{a", "--combinations", exit_code=2, stdin=b"fine\n__x__\n{b"))
    for problem in ("line 2: there is no wildcard 'x'", "line 3: '{b' in '{b' cannot be read", "'{a' in '{a' cannot"):
        assert problem in stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a", "--samples", 2, "--combinations"], "--samples: cannot be combined with --combinations"),
        (["a", "--wildcards", "."], "--wildcards: needs --combinations or --samples"),
        (["a", "--samples", 2, "--wildcards", "missing"], "'--wildcards': dir 'missing' does not exist"),
        (["--from", "a.png", "--combinations"], "PROMPT: a recipe's prompt is no template"),
    ],
)
def test_wrong_usage(darkroom, arguments, problem):
    if "--from" in arguments:
        darkroom("generate", "a", "--steps", 1, "--out", "a.png")
    assert problem in said(darkroom("generate", *arguments, exit_code=2))
