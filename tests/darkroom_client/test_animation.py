"""Pictures as they develop, by --animate, and pictures in a viewer, by --open."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from darkroom_client import events
from darkroom_client.animation import save_animation

CODE = "from darkroom_client.cli import main; main()"


@pytest.fixture
def address(server):
    return server.address


def frames(path):
    """The frames of an animation, (frames, height, width, 3), and how long each is shown, in milliseconds."""
    pictures, times = [], []
    with PIL.Image.open(path) as animation:
        assert animation.info["loop"] == 0
        for index in range(animation.n_frames):
            animation.seek(index)
            pictures.append(np.asarray(animation.convert("RGB"), int))
            times.append(animation.info["duration"])
    return np.stack(pictures), times


def pixels(path):
    with PIL.Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), int)


class TestFrames:
    def picture(self, size, color="red"):
        buffer = BytesIO()
        PIL.Image.new("RGB", size, color).save(buffer, "PNG")
        return {"image_bytes": buffer.getvalue(), "media_type": "image/png", "width": size[0], "height": size[1]}

    def preview(self, step, size, color):
        picture = self.picture(size, color)
        return events.Preview("job", step, image_index=0, step=step, decoder="latent-rgb", **picture)

    def image(self, size, color="red"):
        return events.Image("job", 9, image_index=0, seed=7, safety=None, metadata={}, **self.picture(size, color))

    def test_a_preview_stays_until_the_next_one(self, tmp_path):
        previews = [self.preview(1, (16, 8), "black"), self.preview(4, (16, 8), "blue")]
        path = save_animation(tmp_path / "a.png", previews, self.image((64, 32)))
        pictures, times = frames(path)
        assert times == [240, 80, 2000]
        assert [tuple(frame[0, 0]) for frame in pictures] == [(0, 0, 0), (0, 0, 255), (255, 0, 0)]
        assert all((frame == frame[0, 0]).all() for frame in pictures)

    def test_rounded_sides_are_filled(self, tmp_path):
        previews = [self.preview(1, (16, 11), "blue")]  # of 100 x 70 pixels, 16 x 11.2
        pictures, _ = frames(save_animation(tmp_path / "a.png", previews, self.image((100, 70))))
        assert (pictures[0] == (0, 0, 255)).all()

    def test_a_region_in_another_ratio_stands_in_the_middle(self, tmp_path):
        previews = [self.preview(1, (16, 16), "blue")]
        pictures, _ = frames(save_animation(tmp_path / "a.png", previews, self.image((64, 32))))
        blue = (pictures[0] == (0, 0, 255)).all(axis=2)
        assert blue[:, 16:48].all()
        assert blue.sum() == 32 * 32

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"ends in \.mp4; animations end in \.webp, \.gif, \.png"):
            save_animation(tmp_path / "a.mp4", [self.preview(1, (8, 8), "red")], self.image((8, 8)))
        with pytest.raises(ValueError, match="at least one preview"):
            save_animation(tmp_path / "a.gif", [], self.image((8, 8)))


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_a_picture_develops_in_a_file(darkroom, suffix):
    run = ("generate", "a red circle", "--model", "shapes", "--seed", 7, "--steps", 6)
    result = darkroom(*run, "--out", "circle.png", "--animate", f"film{suffix}", "--json")
    lines = list(map(json.loads, result.stdout.splitlines()))
    steps = [line["step"] for line in lines if line["event"] == "preview"]
    assert lines[-1] == {"event": "animation", "job": 0, "image_index": 0, "path": f"film{suffix}"}
    pictures, times = frames(f"film{suffix}")
    assert len(pictures) == len(steps) + 1
    assert sum(times) == 80 * (steps[-1] + 1 - steps[0]) + 2000
    assert times[-1] == 2000
    final = pixels("circle.png")
    assert pictures.shape[1:] == final.shape
    differences = np.abs(pictures - final).mean(axis=(1, 2, 3))
    assert differences[0] > 4 * differences[-1]  # it develops
    assert differences[-1] <= {".webp": 6, ".gif": 6, ".png": 0}[suffix]


def test_several_pictures_have_files_of_their_own(darkroom):
    run = ("generate", "a", "b", "--num-images", 2, "--steps", 2, "--seed", 3)
    made = darkroom(*run, "--out", "new/", "--animate", "film.webp").stdout.splitlines()
    assert made[4:] == ["film-1.webp", "film-2.webp", "film-3.webp", "film-4.webp"]
    made = darkroom(*run, "--out", "new/", "--animate", "films/{prompt}-{seed}.gif").stdout.splitlines()
    assert made[4:] == ["films/a-3.gif", "films/a-4.gif", "films/b-3.gif", "films/b-4.gif"]
    assert all(frames(path)[1][-1] == 2000 for path in made[4:])
    again = darkroom("generate", "a", "--steps", 2, "--animate", "film-1.webp", "--no-clobber").stdout.splitlines()
    assert again[-1] == "film-1-2.webp"


def test_an_edit_develops_too(darkroom):
    PIL.Image.new("RGB", (40, 32), "blue").save("photo.png")
    made = darkroom("edit", "photo.png", "a", "--steps", 4, "--animate", "film.webp", "--out", "edited.png")
    assert made.stdout.splitlines() == ["edited.png", "film.webp"]
    pictures, _ = frames("film.webp")
    assert pictures.shape[1:] == pixels("edited.png").shape


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--animate", "a.mp4"], "--animate: a.mp4 must end in .webp, .gif, .png"),
        (["--animate", "{what}.gif"], "--animate: a pattern may hold {index}, {prompt}, {seed} and {suffix}"),
        (["--animate", "a.gif", "--no-preview"], "--animate: needs previews"),
        (["--animate", "a.gif", "--preview", "off"], "--animate: needs previews"),
        (["--animate", "a.png", "--out", "a.png"], "--animate: must be another file than that of --out"),
        (["--open", "--out", "-"], "--open: cannot be combined with --out -"),
    ],
)
def test_wrong_usage(darkroom, arguments, problem):
    stderr = darkroom("generate", "a", *arguments, exit_code=2).stderr
    assert problem in " ".join(stderr.replace("│", " ").split())


def test_a_picture_without_previews_is_said(darkroom, monkeypatch, scripted, make_events):
    monkeypatch.setenv("DARKROOM_ADDRESS", scripted.address)

    def script(request, context):
        events = make_events(request.request_id)
        yield from (events.accepted(1), events.step(1, 1), events.image(), events.completed())

    scripted.script = script
    result = darkroom("generate", "a", "--animate", "a.webp", "--out", "a.png")
    assert result.stdout == "a.png\n"
    assert "warning: --animate: no previews of a came; --preview MODE chooses" in result.stderr
    assert scripted.requests[0].preview.mode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the viewer is xdg-open")
class TestOpen:
    def run(self, server, folder, path):
        """`darkroom generate --open` of two pictures, with this PATH."""
        environment = {**os.environ, "DARKROOM_ADDRESS": server.address, "PATH": str(path)}
        command = [sys.executable, "-c", CODE, "generate", "a", "b", "--steps", "1", "--seed", "3", "--open"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)

    @pytest.fixture
    def viewer(self, tmp_path):
        """Makes an xdg-open of shell commands."""

        def make(commands):
            viewer = tmp_path / "bin/xdg-open"
            viewer.parent.mkdir()
            viewer.write_text(f"#!/bin/sh\n{commands}\n")
            viewer.chmod(0o755)
            return viewer

        return make

    def test_pictures_are_opened(self, server, tmp_path, viewer):
        viewer = viewer('echo "seen $1"')
        names = ["1-a-3.png", "2-b-3.png"]
        done = self.run(server, tmp_path, viewer.parent)  # returns when the viewers have closed the pipe, too
        assert done.stderr == ""
        assert sorted(done.stdout.splitlines()) == sorted([*names, *(f"seen {tmp_path / name}" for name in names)])

    def test_without_a_viewer(self, server, tmp_path):
        done = self.run(server, tmp_path, tmp_path)
        assert done.stdout.splitlines() == ["1-a-3.png", "2-b-3.png"]
        assert done.stderr == "warning: --open: this system has no viewer that opens 1-a-3.png\n"
        assert Path(tmp_path / "2-b-3.png").exists()

    def test_a_viewer_that_fails_is_said_in_one_line(self, server, tmp_path, viewer):
        viewer = viewer("echo no method available for opening $1 >&2; exit 3")
        done = self.run(server, tmp_path, viewer.parent)
        assert done.stdout.splitlines() == ["1-a-3.png", "2-b-3.png"]
        assert done.stderr == "warning: --open: this system has no viewer that opens 1-a-3.png\n"

    def test_a_viewer_that_stays_open_is_left_alone(self, server, tmp_path, viewer):
        viewer = viewer('touch "$1.seen"; exec tail -f /dev/null --pid $PPID > /dev/null')
        os.symlink("/usr/bin/tail", viewer.with_name("tail"))
        os.symlink("/usr/bin/touch", viewer.with_name("touch"))
        done = self.run(server, tmp_path, viewer.parent)
        assert done.stderr == ""
        assert sorted(path.name for path in tmp_path.glob("*.seen")) == ["1-a-3.png.seen", "2-b-3.png.seen"]
