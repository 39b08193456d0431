"""Every verb of the command, end to end on a small data set; every mistake is one line and exit code 2."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from draw import checkpoint, cli, run
from small import data_set, small_config

SMALL = ["--steps", "3", "--enc-size", "12", "--dec-size", "12", "--z-size", "4", "--read-n", "2", "--write-n", "3",
         "--batch-size", "8", "--log-every", "2", "--validate-every", "4", "--validation-images", "0"]  # fmt: skip


def trained_in(place):
    """The folder, after a data set was put into it, in a file, and a run trained on that."""
    data = data_set(height=8, width=6)
    np.savez(place / "small.npz", **{split: images.numpy() for split, images in data.images.items()})
    arguments = ["train", "demo", "--data", f"{place}/small.npz", "--out", f"{place}/run", "--iterations", "8", *SMALL]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set in a file, and a run trained on it."""
    return trained_in(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def draw(place, capsys):
    """Runs a command line; gives what it wrote to stdout."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return call


@pytest.fixture
def refused(capsys):
    """Runs a command line that must fail with exit code 2; gives its one line."""

    def call(*arguments, lines=1):
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.count("\n") == lines, captured.err
        return captured.err

    return call


def seen(path):
    """What an image file shows."""
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        pixels = np.asarray(image.convert("L"))
    return {"width": pixels.shape[1], "height": pixels.shape[0], "n_frames": frames, "pixels": pixels}


def test_train_leaves_a_run_folder(place):
    names = {path.name for path in (place / "run").iterdir()}
    assert names - {".lock"} == {"config.json", "metrics.jsonl", "checkpoints", "samples", "readings"}
    assert json.loads((place / "run" / "config.json").read_text())["model"]["height"] == 8


def test_iterations_on_the_command_line_replace_a_preset_schedule_in_minutes(place):
    assert json.loads((place / "run" / "config.json").read_text())["train"]["schedule_minutes"] is None
    assert run.read_log(place / "run")[-1]["step"] == 8


def test_train_resumes_and_tells_how_it_ended(place, tmp_path, capsys):
    arguments = ["train", "demo", "--data", place / "small.npz", "--out", tmp_path / "r", *SMALL, "--device", "cpu"]
    assert cli.main([str(a) for a in [*arguments, "--minutes", "0.005"]]) == 0
    assert f"to go on: draw train --resume --out {tmp_path / 'r'}" in capsys.readouterr().err
    step = checkpoint.read(checkpoint.newest(tmp_path / "r")).step
    assert step > 0
    arguments = ["train", "--resume", "--out", tmp_path / "r", "--iterations", step + 2, "--json"]
    assert cli.main([str(a) for a in arguments]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == step + 2
    assert json.loads(captured.out)["finished"]
    assert "finished" in captured.err


def test_a_run_to_go_on_with_may_be_named_by_its_folder(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for runs in ("runs", "other"):  # two of one name
        shutil.copytree(place / "run", tmp_path / runs / "first")
    assert cli.main(["train", "--resume", "other/first", "--iterations", "10"]) == 0
    assert "finished: other/first" in capsys.readouterr().err
    steps = [run.read_log(tmp_path / runs / "first")[-1]["step"] for runs in ("runs", "other")]
    assert steps == [8, 10]


def test_images_given_in_python_are_asked_for(place, tmp_path, refused):
    list(run.train(small_config(iterations=1), tmp_path / "r", data=data_set(), device="cpu"))
    line = refused("evaluate", tmp_path / "r")
    assert f"'{data_set().name}' names no data set: images given in Python are measured there" in line
    assert line == refused("train", "--resume", "--out", tmp_path / "r", "--iterations", 2)


def test_how_to_go_on_says_where_the_data_are(place, tmp_path, capsys):
    arguments = ["train", "demo", "--data", place / "small.npz", "--out", tmp_path / "r", *SMALL, "--device", "cpu"]
    assert cli.main([str(a) for a in [*arguments, "--minutes", "0.001", "--data-dir", tmp_path / "my data"]]) == 0
    assert f"--resume --out {tmp_path / 'r'} --data-dir '{tmp_path / 'my data'}'\n" in capsys.readouterr().err


def test_measuring_on_images_that_have_changed_says_so(place, tmp_path, capsys):
    with np.load(place / "small.npz") as file:
        images = {name: file[name] for name in file.files}
    np.savez(tmp_path / "mine.npz", **images)
    train = ["train", "demo", "--data", tmp_path / "mine.npz", "--out", tmp_path / "r", *SMALL, "--device", "cpu"]
    assert cli.main([str(a) for a in train]) == 0
    for changed in (False, True):
        if changed:
            np.savez(tmp_path / "mine.npz", **{name: x[::-1] for name, x in images.items()})
        capsys.readouterr()
        assert cli.main(["evaluate", str(tmp_path / "r")]) == 0
        assert ("are not those that the model was trained on" in capsys.readouterr().err) == changed


def test_a_pack_takes_the_place_of_the_resized_folder_that_it_was_made_of(draw, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(20):
        Image.new("L", (9, 9), 12 * i).save(tmp_path / "photos" / f"{i:02}.png")
    source, pack, out = f"folder:{tmp_path / 'photos'}", tmp_path / "pack", tmp_path / "r"
    draw("data", "pack", source, "--size", "8x6", "--out", pack)
    draw("train", "demo", "--data", source, "--size", "8x6", "--out", out, *SMALL, "--iterations", "4")
    measured = [draw("evaluate", out, *more) for more in ([], ["--data", f"packed:{pack}"])]
    assert measured[0].splitlines()[1:4] == measured[1].splitlines()[1:4]
    draw("train", "--resume", "--out", out, "--data", f"packed:{pack}", "--iterations", "6")
    assert checkpoint.find(out).config.data.source == f"packed:{pack}"


def test_what_a_terminal_cannot_show_is_escaped(place, tmp_path):
    out = tmp_path / "ünï.png"
    command = [sys.executable, "-m", "draw", "sample", str(place / "run"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True)
    assert b"\\xfcn\\xef.png" in done.stdout
    assert out.exists()


def test_a_run_without_its_log_can_go_on(draw, place, tmp_path):
    draw("train", "demo", "--data", place / "small.npz", "--out", tmp_path / "r", *SMALL, "--iterations", "4")
    (tmp_path / "r" / "metrics.jsonl").unlink()
    draw("train", "--resume", "--out", tmp_path / "r", "--iterations", "6")
    assert run.read_log(tmp_path / "r")[-1]["step"] == 6


def test_epochs_are_turned_into_iterations(draw, place, tmp_path):
    arguments = ["train", "demo", "--data", place / "small.npz", "--out", tmp_path / "r", *SMALL]
    draw(*arguments, "--epochs", "1.5", "--json")
    assert run.read_log(tmp_path / "r")[-1]["step"] == 8  # 1.5 * 40 images / 8, rounded up


def test_a_configuration_file_trains_the_same(draw, place, tmp_path):
    draw("train", place / "run" / "config.json", "--out", tmp_path / "r", "--device", "cpu")
    mine, theirs = checkpoint.find(tmp_path / "r"), checkpoint.find(place / "run")
    assert mine.sha256[checkpoint.MODEL] == theirs.sha256[checkpoint.MODEL]


@pytest.mark.parametrize("patch", ["5", "4x5"])
def test_a_configuration_file_takes_another_size_of_its_images(draw, place, tmp_path, patch):
    draw("train", place / "run" / "config.json", "--patch", patch, "--out", tmp_path / "r", "--device", "cpu")
    model = checkpoint.find(tmp_path / "r").config.model
    assert f"{model.height}x{model.width}" in (patch, f"{patch}x{patch}")


def test_a_configuration_file_of_other_images_is_refused(refused, place, tmp_path):
    config = json.loads((place / "run" / "config.json").read_text())
    config["model"]["height"] = 28
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert "height is 28, but the images of" in refused("train", tmp_path / "c.json", "--out", tmp_path / "r")


def test_the_wrong_size_of_images_is_refused(refused, place, tmp_path):
    line = refused("train", "demo", "--data", place / "small.npz", "--out", tmp_path / "r", "--height", "28")
    assert "height is 28, but the images of" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(place, tmp_path, number):
    out = tmp_path / "r"
    command = [sys.executable, "-m", "draw.cli", "train", "demo", "--data", place / "small.npz", "--out", out, *SMALL]
    command += ["--iterations", "1000000", "--checkpoint-minutes", "1000"]
    before = signal.signal(number, signal.SIG_DFL)  # under nohup a hang-up is ignored, by those that are started too
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    signal.signal(number, before)
    for _ in range(600):
        if (out / "metrics.jsonl").is_file() and len(run.read_log(out)) > 3:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"to go on: draw train --resume --out {out}" in err
    logged = run.read_log(out)[-1]["step"]
    assert checkpoint.read(checkpoint.newest(out)).step >= logged > 0


def test_training_goes_on_when_nobody_reads_its_lines_any_more(place, tmp_path):
    out = tmp_path / "r"
    command = [sys.executable, "-m", "draw.cli", "train", "demo", "--data", place / "small.npz", "--out", out, *SMALL]
    process = subprocess.Popen([*command, "--iterations", "60", "--log-every", "1"], stderr=subprocess.PIPE)
    process.stderr.close()
    process.wait(timeout=60)
    assert checkpoint.read(checkpoint.newest(out)).step == 60


@pytest.mark.parametrize("source", ["~no-such-user/small.npz", "folder:~no-such-user/photos", "packed:~no-such-user"])
def test_a_sign_of_home_that_is_no_users_is_part_of_the_name(refused, tmp_path, source):
    assert "~no-such-user" in refused("train", "demo", "--data", source, "--out", tmp_path / "r")


def test_a_run_in_the_home_folder_is_found_again(draw, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    draw("train", "demo", "--data", place / "small.npz", "--out=~/r", "--iterations", 2, *SMALL)
    draw("train", "--resume", "--out=~/r", "--iterations", 4)  # as a shell hands it on
    assert checkpoint.read(checkpoint.newest(tmp_path / "r")).step == 4


def test_moved_images_keep_the_binarization_of_their_run(draw, tmp_path):
    steps, grey = ("--out", tmp_path / "r", "--device", "cpu"), tmp_path / "grey.npz"
    np.savez(grey, **{split: images.numpy() for split, images in data_set(grey=True).images.items()})
    draw("train", "demo", "--data", grey, "--binarization", "none", "--iterations", 2, *steps, *SMALL)
    (tmp_path / "moved.npz").write_bytes(grey.read_bytes())
    draw("train", "--resume", *steps, "--data", tmp_path / "moved.npz", "--iterations", 4)
    assert checkpoint.find(tmp_path / "r").config.data.binarization == "none"


def test_evaluate_prints_the_keys_that_others_read(draw, place):
    result = json.loads(draw("evaluate", place / "run", "--importance-samples", "5", "--json"))
    keys = "bound_nats bound_se loss_x_nats loss_z_nats bits_per_dim iw_nats importance_samples images split seconds"
    assert {*keys.split(), "binarization"} <= result.keys()
    assert (result["images"], result["split"], result["binarization"]) == (13, "test", "static")


def test_evaluate_in_words_has_the_same_number(draw, place):
    bound = json.loads(draw("evaluate", place / "run", "--json", "--split", "valid"))["bound_nats"]
    text = draw("evaluate", place / "run", "--split", "valid")
    assert f"bound  {bound:.2f} ±" in text
    assert "valid split, 11 images, binarization static" in text


def test_a_cross_entropy_is_not_called_a_code_length(draw, place, tmp_path):  # trap: grey pixels as if binary
    grey = data_set(height=8, width=6, grey=True)
    np.savez(tmp_path / "grey.npz", **{split: images.numpy() for split, images in grey.images.items()})
    text = draw("evaluate", place / "run", "--data", tmp_path / "grey.npz", "--binarization", "none")
    assert "binarization none" in text
    assert "no code length" in text


def test_sample_writes_a_sheet(draw, place, tmp_path):
    out = draw("sample", place / "run", "-n", 9, "--out", tmp_path / "s.png")
    assert str(tmp_path / "s.png") in out
    assert seen(tmp_path / "s.png")["width"] > 100


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(draw, place, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw("sample", place / "run", "-n", 4, "--seed", seed, "--out", tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_binary_samples_have_two_values(draw, place, tmp_path):
    draw("sample", place / "run", "-n", 1, "--binary", "--out", tmp_path / "s.png")
    picture = seen(tmp_path / "s.png")["pixels"]
    assert len(np.unique(picture)) <= 3  # black, white, and the ground between images


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_sample_animates_every_glimpse(draw, place, tmp_path, suffix):
    path = tmp_path / f"s.{suffix}"
    draw("sample", place / "run", "-n", 4, "--animate", path)
    assert seen(path)["n_frames"] == 1 + 3 + 1  # before the first stroke, three glimpses, the result


def test_reconstruct_draws_images_of_a_data_set(draw, place, tmp_path):
    result = json.loads(draw("reconstruct", place / "run", "-n", 3, "--out", tmp_path / "r.png", "--json"))
    assert len(result["bound_nats"]) == 3
    assert seen(tmp_path / "r.png")["height"] > 20


def test_reconstruct_draws_image_files(draw, place, tmp_path):
    Image.new("RGB", (60, 90), "white").save(tmp_path / "photo.jpg")
    result = json.loads(
        draw("reconstruct", place / "run", tmp_path / "photo.jpg", "--out", tmp_path / "r.png", "--json")
    )
    assert len(result["bound_nats"]) == 1


def test_a_picture_that_is_mostly_ink_is_told_of(draw, place, tmp_path, capsys):
    for name, paper in (("dark", 255), ("light", 0)):
        Image.new("L", (8, 6), paper).save(tmp_path / f"{name}.png")
    arguments = ["reconstruct", place / "run", tmp_path / "dark.png", tmp_path / "light.png"]
    assert cli.main([str(a) for a in [*arguments, "--out", tmp_path / "r.png"]]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"draw: {tmp_path / 'dark.png'} is mostly white, which is ink to this model: was it meant so?"]


def test_info_names_every_parameter_and_their_number(draw, place):
    result = json.loads(draw("info", place / "run", "--json"))
    model = checkpoint.find(place / "run").model()
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    assert set(result["shapes"]) == {name for name, _ in model.named_parameters()}
    assert f"{result['parameters']:,}" in draw("info", place / "run")


def test_info_of_the_mnist_preset_counts_its_parameters(draw):
    h, z, pixels = 256, 100, 28 * 28
    encoder = 4 * h * (2 * 2 * 2 + h + h + 1)
    decoder = 4 * h * (z + h + 1)
    heads = 2 * z * (h + 1) + 2 * 5 * (h + 1) + 25 * (h + 1)
    initial = 4 * h + pixels
    result = json.loads(draw("info", "--preset", "mnist", "--json"))
    assert result["parameters"] == encoder + decoder + heads + initial


@pytest.mark.parametrize("number", ["1", "3", "6", "latents"])
def test_figures_are_drawn(draw, place, tmp_path, number):
    draw("figure", number, place / "run", "-n", 2, "--out", tmp_path / "f.png")
    assert seen(tmp_path / "f.png")["width"] > 100


def test_figure_7_is_of_models_without_attention(draw, refused, place, tmp_path):
    assert "shows drawing without attention" in refused("figure", "7", place / "run")
    arguments = ["train", "demo", "--data", place / "small.npz", "--out", tmp_path / "r", *SMALL]
    draw(*arguments, "--iterations", "2", "--read-n", "none", "--write-n", "none")
    draw("figure", "7", tmp_path / "r", "-n", 2, "--out", tmp_path / "f.png")
    assert seen(tmp_path / "f.png")["width"] > 100


def test_curve_plots_a_run(draw, place, tmp_path):
    draw("curve", place / "run", "--out", tmp_path / "c.png")
    assert seen(tmp_path / "c.png")["width"] >= 800


def test_data_list_names_every_set(draw):
    text = draw("data", "list")
    for name in ("mnist", "two-digit-mnist", "binarized-mnist", "fashion-mnist", "omniglot", "cifar10", "glyphs"):
        assert name in text
    assert json.loads(draw("data", "list", "--json"))["glyphs"]["here"] is True


def test_data_check_tells_good_from_bad(draw, shared_data, tmp_path, capsys):
    assert draw("data", "check", "mnist", "--data-dir", shared_data).count("ok ") == 4
    assert cli.main(["data", "check", "mnist", "--data-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("missing") == 4
    assert "get them with: draw data get mnist" in captured.err


def test_data_get_finds_what_is_here(draw, shared_data):
    assert str(shared_data) in draw("data", "get", "mnist", "--data-dir", shared_data)


def test_data_preview_writes_a_contact_sheet(draw, place, tmp_path):
    text = draw("data", "preview", place / "small.npz", "-n", 9, "--out", tmp_path / "p.png")
    assert "1 x 8 x 6" in text
    assert seen(tmp_path / "p.png")["width"] > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "demmo"], "unknown preset 'demmo'; did you mean 'demo'?"),
        (["train"], "name what to train: demo, "),
        (["train", "demo", "--step", "3"], "unknown argument '--step'; did you mean '--steps'?"),
        (["train", "demo", "--steps", "many"], "expected int, got 'many'"),
        (["train", "demo", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "demo", "--read-n", "all"], "expected int or none, got 'all'"),
        (["train", "demo", "--data", "mnits"], "did you mean 'mnist'?"),
        (["train", "demo", "--data", "nowhere.npy"], "nowhere.npy"),
        (["train", "demo", "--minutes", "-1"], "expected a positive number, got '-1'"),
        (["train", "demo", "--device", "gpux"], "unknown --device 'gpux'; choose one of auto, cpu, cuda, mps"),
        (["train", "nothing.json"], "nothing.json cannot be read"),
        (["train", "demo", "--seed", str(2**63)], "seed must be from 0 to 2**63 - 1"),
        (["train", "demo", "--iterations", "5", "--epochs", "2"], "give one of --iterations, --epochs"),
        (["train", "demo", "--grow-from", "11"], "--grow-from 11 is more than all 10 glimpses"),
        (["train", "demo", "--awake", "2", "--init", "mnist"], "--awake is for a network that begins from nothing"),
        (["train", "demo", "--skip-bad"], "size, grey and skip-bad are for folder:PATH, not for glyphs"),
        (["train", "demo", "--batch-size", str(10**12)], "batch_size must be at most 1,000,000"),
        (["train", "demo", "--steps", str(10**21)], "steps must be at most 1,000,000, got 1000"),
        (["train", "demo", "--read-n", str(10**21)], "read_n must be at most 1,000,000, got 1000"),
        (["train", "demo", "--iterations", "9" * 400], "iterations must be at most 1,000,000,000,000, got 999"),
        (["train", "demo", "--epochs", "1e300"], "iterations must be at most 1,000,000,000,000, got "),
        (["sample", "mnist", "-n", str(10**21)], "expected a whole number from 1 to 1,000,000, got '1000"),
        (["sample", "mnist", "--temperature", "1e300"], "temperature must be from 0 to 1,000, got 1e+300"),
        (["sample", "mnist", "--out", "a.png", "--animate", "./b/../a.png"], "--out and --animate are both a.png"),
        (
            ["data", "pack", "glyphs", "--out", "p", "--seed", "1"],
            "unknown argument '--seed'; did you mean '--data-seed'?",
        ),
        (["curve", "r", "--device", "cpu"], "unknown argument '--device'"),
        (["data", "pack", "glyphs", "--out", "p", "--shard-mb", "1e303"], "at most 1,048,576, got 1e+303"),
        (["reconstruct", "mnist", "a.png", "--size", "12"], "give either image files or --size"),
        (["reconstruct", "mnist", "a.png", "--out", "./b/../a.png"], "--out b/../a.png is one of the images to read"),
        (["data", "preview", "x", "--size", "²"], "size must be SIDE or HEIGHTxWIDTH"),
        (["data", "preview", "folder:"], "folder: needs a path"),
        (["train", "--resume"], "--resume needs the run's folder: --out DIR"),
        (["train", "--resume", "other/first"], "other/first holds no checkpoint to resume from"),
        (["evaluate", "nothing"], "no model 'nothing'"),
        (["sample", "mnist-1h"], "no weights of the preset mnist-1h ship: draw train mnist-1h, then name the run's"),
        (["sample", "mnist", "--n", "3"], "unknown argument '--n'; did you mean '-n'?"),
        (["evaluate"], "the following arguments are required: MODEL"),
        (["sample", "nothing", "-n", "0"], "expected a whole number from 1 to 1,000,000, got '0'"),
        (["figure", "2", "nothing"], "unknown figure '2'"),
        (["info"], "give either a MODEL or --preset NAME"),
        (["data", "get", "mnits"], "did you mean 'mnist'?"),
        (["curve", "nothing"], "nothing is no run's folder: there is none of this name"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_that_helps(refused, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_an_animation_of_an_unknown_kind_is_refused(refused, place, tmp_path):
    assert "the name must end in" in refused("sample", place / "run", "--animate", tmp_path / "s.mp4")


def test_data_of_another_size_than_the_model_is_refused(refused, place):
    assert "the model draws images of 1 x 8 x 6" in refused("evaluate", place / "run", "--data", "glyphs")


def test_a_run_that_exists_is_not_overwritten(refused, place):
    line = refused("train", "demo", "--data", place / "small.npz", "--out", place / "run")
    assert "exists already: go on with --resume, or choose another --out" in line


def test_pictures_are_only_written_to_pngs(refused, place, tmp_path):
    log = (place / "run" / "metrics.jsonl").read_bytes()
    assert "the name must end in .png" in refused("curve", place / "run", "--out", place / "run" / "metrics.jsonl")
    assert "the name must end in .png" in refused("sample", place / "run", "--out", tmp_path / "s.jpg")
    assert (place / "run" / "metrics.jsonl").read_bytes() == log


def test_a_place_that_cannot_be_written_is_one_line(refused, place):
    start = ["train", "demo", "--data", place / "small.npz", *SMALL, "--out"]
    assert "/proc/x" in refused(*start, "/proc/x")
    assert "config.json" in refused(*start, place / "run" / "config.json" / "below")
    assert "too long" in refused(*start, place / ("x" * 300))


@pytest.mark.parametrize("order", ["nhwc", "fortran"])
def test_arrays_in_any_order_of_memory_train(draw, tmp_path, order):
    images = data_set(height=8, width=6).images["train"].numpy()
    array = np.repeat(images, 3, axis=1).transpose(0, 2, 3, 1) if order == "nhwc" else np.asfortranarray(images[:, 0])
    np.save(tmp_path / "a.npy", array)
    result = draw(
        "train", "demo", "--data", tmp_path / "a.npy", *SMALL, "--iterations", 2, "--out", tmp_path / "r", "--json"
    )
    assert json.loads(result)["step"] == 2


def test_a_finished_run_still_answers_in_json(draw, place):
    result = json.loads(draw("train", "--resume", "--out", place / "run", "--json"))
    assert result == {"step": 8, "seconds": result["seconds"], "out": str(place / "run"), "finished": True}


def test_a_run_works_from_another_folder(draw, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    draw("train", "demo", "--data", "small.npz", *SMALL, "--iterations", 2, "--out", tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    assert json.loads(draw("evaluate", "r", "--json"))["images"] == 13


def test_a_reader_that_has_gone_is_no_traceback(place):
    command = f"{sys.executable} -m draw.cli info {place / 'run'} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_results_go_to_stdout_and_progress_to_stderr(place):
    command = [sys.executable, "-m", "draw.cli", "evaluate", place / "run", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images"] == 13


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("draw 0.")


def test_a_closed_output_is_no_failure():
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m draw models >&-", shell=True, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_set_without_files_is_said_to_have_none(draw):
    assert "glyphs has no files" in draw("data", "check", "glyphs")


def test_a_run_named_as_a_configuration_is_told_what_to_name(refused, place):
    line = refused("train", place / "run", "--out", place / "another")
    assert "is a run's folder: go on with --resume --out" in line
    assert line.rstrip().endswith("run/config.json")
