"""The command line as a user meets it: tables on stdout, one line on stderr for what is wrong, and the exit code."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_checkpoint import tiny_disk
from test_run import FILES, cached_mnist, outcome, pictures, quick_data, trained  # noqa: F401  # an autouse fixture

import dlgpu
from dlgpu import checkpoint, data, insight, models, nn
from dlgpu.cli import main
from dlgpu.run import Config, Run, load_model

COMMAND = [sys.executable, "-m", "dlgpu"]
QUICK = ["train", "mlp", "--limit", "200", "--epochs", "2"]

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """cli(argument, ...) -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return (int(caught.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows most digits. Tests must not write here."""
    return trained(tmp_path_factory.mktemp("runs") / "mlp-1", Config("mlp", limit=3000, epochs=3))


def succeeded(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    return out


def failed(result: tuple[int, str, str]) -> str:
    """The one line that says what is wrong."""
    code, _, err = result
    assert code == 2
    assert re.fullmatch(r"error: \[[\w .()]+\] .+\n", err), err
    return err.removeprefix("error: ").rstrip()


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "eval", "predict", "viz", "report", "info", "models"])
def test_help(cli: Cli, command: str) -> None:
    assert re.search(rf"^  {command} .+\.$", succeeded(cli("--help")), re.MULTILINE)
    text = succeeded(cli(command, "-h"))
    assert text.startswith(f"Usage: dlgpu {command} ")
    assert max(map(len, text.splitlines())) <= 110
    if command == "train":
        assert "  dlgpu train deep_convnet --augment shift,rotate" in text


def test_version(cli: Cli) -> None:
    assert succeeded(cli("--version")) == f"dlgpu, version {dlgpu.__version__}\n"


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_writes_a_run(cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):  # the next free folder
        out = succeeded(cli(*QUICK, "--epochs", "1"))
        assert f"\nwriting runs/mlp-{number}/\n" in out
        assert {path.name for path in (tmp_path / f"runs/mlp-{number}").iterdir()} == FILES


def test_train_prints_a_row_per_epoch(cli: Cli, tmp_path: Path) -> None:
    out = succeeded(cli(*QUICK, "--validation", 50, "--augment", "shift, rotate", "--run", "r"))
    header, first, second = out.splitlines()[4:7]
    assert header.split() == ["epoch", "train", "loss", "accuracy", "valid", "loss", "accuracy", "lr", "seconds"]
    for number, row in enumerate((first, second), 1):
        assert re.fullmatch(rf" +{number}( +\d+\.\d{{4}} +\d+\.\d\d%){{2}} +0\.001 +\d+\.\d\d", row)
        assert len(row) == len(header)
    assert re.search(r"^best valid accuracy \d+\.\d\d% \(epoch [12]\)$", out, re.MULTILINE)
    assert re.search(r"^test accuracy of that epoch's weights \d+\.\d\d%$", out, re.MULTILINE)
    assert out.splitlines()[-1] == f"r/: {', '.join(['best.safetensors', 'last.safetensors', 'metrics.jsonl'])}, " + (
        "curves.png, filters.png"
    )


def test_options_reach_the_run(cli: Cli, tmp_path: Path) -> None:
    succeeded(
        cli(
            *QUICK, "-b", 20, "--optimizer", "momentum", "--lr", 0.05, "--weight-decay", 0.1, "--schedule", "step",
            "--clip-norm", 3, "--patience", 4, "--seed", 7, "--device", "cpu", "--data", "mnist", "--run", "r",
            "--data-root", Path(data.__file__).parent / "mnist_files",
        )
    )  # fmt: skip
    options = ("batch_size", "optimizer", "lr", "weight_decay", "schedule", "clip_norm", "patience", "seed", "device")
    text = succeeded(cli("info", "r"))
    shown = dict(line.split(None, 1) for line in text.splitlines() if len(line.split()) > 1)
    assert [shown[name] for name in options] == ["20", "momentum", "0.05", "0.1", "step", "3.0", "4", "7", "cpu"]
    assert shown["classes"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"


def test_train_stops_early(cli: Cli) -> None:
    out = succeeded(cli(*QUICK, "--optimizer", "sgd", "--lr", 0, "--patience", 1, "--epochs", 9))
    assert "\nstopped: test_loss has not improved for 1 epochs\n" in out


def test_resume_trains_on(cli: Cli, tmp_path: Path) -> None:
    succeeded(cli(*QUICK, "--run", "r"))
    out = succeeded(cli("train", "--resume", "r", "--epochs", 3))
    assert "\ncontinuing r/ after epoch 2, batch 0\n" in out
    assert re.search(r"^ +3 ", out, re.MULTILINE)
    assert not re.search(r"^ +[12] ", out, re.MULTILINE)
    succeeded(cli(*QUICK, "--epochs", 3, "--run", "whole"))
    assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")


def signalled(command: list[str], folder: Path, line: str, number: signal.Signals) -> tuple[int, str, str]:
    """A process that gets a signal once it has printed a line that begins so: exit code, what came then, stderr."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for printed in process.stdout:
            if printed.startswith(line):
                process.send_signal(number)
                break
        rest, err = process.stdout.read(), process.stderr.read()
    return process.returncode, rest, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    config = Config("mlp", limit=300, epochs=5, batch_size=2, schedule="cosine")
    settings = ["--limit", "300", "--epochs", "5", "-b", "2", "--schedule", "cosine", "--run", "runs/a"]
    code, rest, err = signalled([*COMMAND, "train", "mlp", *settings], tmp_path, "    1 ", number)
    assert (code, err) == (128 + number, "")
    hint = "interrupted; everything is saved. Go on with: dlgpu train --resume runs/a"
    assert rest.splitlines()[-1] == hint
    resumed = subprocess.run(
        [*COMMAND, *hint.split("dlgpu ")[1].split()], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"^continuing runs/a/ after epoch [1234], batch \d+$", resumed.stdout, re.MULTILINE)
    assert outcome(tmp_path / "runs/a") == outcome(trained(tmp_path / "whole", config))


# --- eval, predict, info, models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["best", "last"])
def test_eval_counts_per_class(cli: Cli, run_folder: Path, which: str) -> None:
    out = succeeded(cli("eval", run_folder, "--which", which))
    header, *rows = out.splitlines()[:11]
    assert header.split() == ["class", "images", "correct", "accuracy"]
    counts = np.array([[int(cell.replace(",", "")) for cell in row.split()[:3]] for row in rows])
    assert counts[:, 0].tolist() == list(range(10))
    assert counts[:, 1].tolist() == np.bincount(cached_mnist(False, None).labels).tolist()
    hits = counts[:, 2].sum()
    assert out.splitlines()[-1] == f"test accuracy {hits / 10_000:.2%} ({hits:,} of 10,000)"
    assert hits > 8000


def test_eval_of_several_runs_and_of_their_ensemble(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    other = trained(tmp_path / "other", Config("mlp", limit=3000, epochs=3, seed=5))
    single = [succeeded(cli("eval", run)).splitlines()[-1] for run in (run_folder, other)]
    both = succeeded(cli("eval", run_folder, other)).splitlines()
    assert [line for line in both if line.startswith("test accuracy")] == single
    together = succeeded(cli("eval", "--ensemble", run_folder, other)).splitlines()
    members = [float(line.split("%")[0]) for line in together[:2]]
    assert [f"{m:.2f}%" for m in members] == [line.split()[2] for line in single]
    assert float(together[-1].split()[2].rstrip("%")) > min(members)
    strange = trained(tmp_path / "strange", Config("mlp", limit=200, epochs=1))
    assert "an ensemble's runs must share their data; got 2 kinds" in failed(
        cli("eval", "--ensemble", run_folder, strange)
    )


@pytest.mark.parametrize("kind", ["filters", "activations", "saliency", "confusion"])
def test_viz_draws(cli: Cli, tmp_path: Path, kind: str) -> None:
    run = trained(tmp_path / "run", Config("lenet5", limit=100, epochs=1))
    (run / "filters.png").unlink()
    assert succeeded(cli("viz", kind, run)) == f"{run / kind}.png\n"
    assert (run / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert succeeded(cli("viz", kind, run, "--image", 3, "-o", tmp_path / "own.png")) == f"{tmp_path / 'own.png'}\n"
    if kind in ("activations", "saliency"):
        assert (tmp_path / "own.png").read_bytes() != (run / f"{kind}.png").read_bytes()
        assert "--image must be in 0..99" in failed(cli("viz", kind, run, "--image", 100))


def test_activations_need_maps(cli: Cli, run_folder: Path) -> None:
    message = "[viz] activations need a layer that answers with maps; got mlp"
    assert failed(cli("viz", "activations", run_folder)) == message
    assert not (run_folder / "activations.png").exists()


def test_report_is_one_page_with_everything(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    assert succeeded(cli("report", run)) == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    accuracy = succeeded(cli("eval", run)).splitlines()[-1].split()[2]
    model, config = load_model(run)
    judgement = insight.judge(model, config.evaluation_batches(cached_mnist(False, None).subset(slice(3000))), 10)
    assert f"{judgement.accuracy:.2%}" in page
    assert abs(float(accuracy.rstrip("%")) / 100 - judgement.accuracy) < 0.05
    assert f"{len(judgement.mistakes):,} of 3,000" in page
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    for name in ("mlp on mnist", "Confusion matrix", "Worst mistakes", "Linear", "78,500"):
        assert name in page
    assert "the folder must hold a run" in failed(cli("report", tmp_path / "nothing"))


def test_predict_knows_digits_on_bright_and_dark_paper(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    test = cached_mnist(False, None)
    names = []
    for index in range(8):
        for name, pixels in (
            (f"{index}-dark.png", test.images[index, 0]),
            (f"{index}-bright.png", 255 - test.images[index, 0]),
        ):
            Image.fromarray(pixels).save(tmp_path / name)
            names.append(name)
    lines = succeeded(cli("predict", run_folder, *names, "--top", 2)).splitlines()
    blocks = [lines[start : start + 3] for start in range(0, len(lines), 3)]
    assert [block[0] for block in blocks] == [
        name + "  (inverted: dark on bright)" * ("bright" in name) for name in names
    ]
    assert [block[1:] for block in blocks[::2]] == [block[1:] for block in blocks[1::2]]
    for _, best, second in blocks:
        assert re.fullmatch(r" +\d+\.\d\d%  \d", best)
        assert float(best.split("%")[0]) >= float(second.split("%")[0])
    correct = sum(block[1].endswith(f"  {label}") for block, label in zip(blocks[::2], test.labels[:8], strict=True))
    assert correct >= 6


def test_predict_scales_colour_pictures(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    digit = Image.fromarray(cached_mnist(False, None).images[0, 0]).resize((90, 90)).convert("RGB")
    digit.save(tmp_path / "seven.jpg")
    assert re.match(r"seven\.jpg\n +\d+\.\d\d%  7\n", succeeded(cli("predict", run_folder, "seven.jpg")))


def test_info_shows_the_machine(cli: Cli) -> None:
    out = succeeded(cli("info"))
    assert f"dlgpu {dlgpu.__version__}, Python" in out
    assert re.search(r"^backend numpy +ready$", out, re.MULTILINE)
    assert re.search(r"^backend cuda  +\S+", out, re.MULTILINE)


def test_models_lists_all_on_one_line_each(cli: Cli) -> None:
    lines = succeeded(cli("models")).splitlines()
    assert [line.split()[0] for line in lines] == ["name", *models.MODELS]
    for line, entry in zip(lines[1:], models.MODELS.values(), strict=True):
        assert entry.about in line


@pytest.mark.parametrize("name", models.MODELS)
def test_models_shows_the_layers(cli: Cli, name: str) -> None:
    small = ("--image-size", 32, "--num-classes", 7)
    out = succeeded(cli("models", name, *small))
    assert "32, 32)" in out
    with nn.init.skipped():
        parameters = sum(p.size for p in models.build(name, image_size=32, num_classes=7).parameters())
    assert f"{parameters:,}" in out


def test_long_lines_are_not_broken(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    name = " ".join(["digit"] * 40) + ".png"
    Image.fromarray(cached_mnist(False, None).images[0, 0]).save(tmp_path / name)
    assert succeeded(cli("predict", run_folder, name)).splitlines()[0] == name


@pytest.mark.parametrize("command", [["models"], ["models", "mlp"], ["info"], ["--help"]], ids=" ".join)
def test_broken_pipe(command: list[str]) -> None:
    """Whoever reads (`head`) has gone before the first line."""
    process = subprocess.Popen([*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "")


# --- unknown names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "lenet"], "unknown model 'lenet'; Did you mean 'lenet5'? known: "),
        (["models", "vgg116"], "unknown model 'vgg116'; Did you mean 'vgg16'? known: "),
        ([*QUICK, "--data", "fashon-mnist"], "'fashon-mnist'; Did you mean 'fashion-mnist'? known: "),
        ([*QUICK, "--optimizer", "adm"], "unknown optimizer 'adm'; Did you mean 'adam'? known: "),
        ([*QUICK, "--schedule", "cosin"], "unknown schedule 'cosin'; Did you mean 'cosine'? known: "),
        ([*QUICK, "--augment", "shift,rotat"], "unknown augmentation 'rotat'; Did you mean 'rotate'? known: "),
        ([*QUICK, "--device", "cpuu"], "unknown backend 'cpuu'; Did you mean 'cpu'? known: "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_unknown_names(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in failed(cli(*arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "mlp"], r"No such command 'trian'. .*'train'"),
        (["train", "mlp", "--epoch", "3"], r"No such option '?--epoch'?.* .*--epochs"),
        (["eval", "r", "--which", "worst"], r"'worst' is not one of 'best', 'last'"),
        (["train", "mlp", "--epochs", "three"], r"'three' is not a valid integer"),
        (["train", "mlp", "--lr", "fast"], r"'fast' is not a valid float"),
        (["predict", "r"], r"Missing argument 'IMAGES"),
        (["eval"], r"Missing argument 'RUN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(cli: Cli, arguments: list[str], message: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    usage, hint, empty, error = err.splitlines()
    assert usage.startswith("Usage: dlgpu ")
    assert hint.startswith("Try 'dlgpu ")
    assert empty == ""
    assert re.match(f"Error: .*{message}", error)


# --- wrong values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "[train] there must be a MODEL or --resume FOLDER (see `dlgpu models`); got neither"),
        ([*QUICK, "--epochs", "0"], "[run] epochs must be >= 1; got 0"),
        ([*QUICK, "-b", "0"], "[run] batch_size must be >= 1; got 0"),
        ([*QUICK, "--limit", "0"], "[run] limit must be >= 1; got 0"),
        ([*QUICK, "--patience", "0"], "[run] patience must be >= 1; got 0"),
        ([*QUICK, "--validation", "200"], "[run] validation must leave images to train on; got 200 of 200"),
        ([*QUICK, "--lr", "nan"], "[Adam] lr must be a finite number >= 0; got nan"),
        ([*QUICK, "--lr", "-1"], "[Adam] lr must be a finite number >= 0; got -1.0"),
        ([*QUICK, "--weight-decay", "inf"], "[Adam] weight_decay must be a finite number >= 0; got inf"),
        ([*QUICK, "--clip-norm", "nan"], "[train] clip_norm must be positive; got nan"),
        ([*QUICK, "--seed", "-1"], "[random] seed must be in [0, 2**64); got -1"),
        ([*QUICK, "--data-root", "nowhere"], "[load_idx] nowhere/train-images-idx3-ubyte.gz must be "),
        (["train", "--resume", "nowhere"], "[run] the folder must hold a run (config.json); got nowhere"),
        (["eval", "nowhere"], "[run] the folder must hold a run (config.json); got nowhere"),
        (["predict", "nowhere", "a.png"], "[run] the folder must hold a run (config.json); got nowhere"),
        (["info", "nowhere"], "[run] the folder must hold a run (config.json); got nowhere"),
        (["models", "mlp", "--image-size", "0"], "[mlp] image_size must be an int >= 1; got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_values(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert failed(cli(*arguments)).startswith(message)
    assert list(tmp_path.iterdir()) == []  # not even a folder


@pytest.mark.skipif(dlgpu.backends.available()["cuda"] == "ready", reason="there is a GPU")
def test_cuda_where_there_is_none(cli: Cli, tmp_path: Path) -> None:
    assert failed(cli(*QUICK, "--device", "cuda")).startswith("[backends] 'cuda' ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["mlp"], ["--lr", "0.1"], ["--augment", "flip"], ["--run", "other"], ["--data", "mnist"], ["--device", "cpu"]],
    ids=" ".join,
)
def test_resume_keeps_the_settings(cli: Cli, run_folder: Path, arguments: list[str]) -> None:
    before = outcome(run_folder)
    name = {"mlp": "MODEL"}.get(arguments[0], arguments[0])
    message = f"[train] --resume keeps a run's settings (only --epochs may change); got {name}"
    assert failed(cli("train", "--resume", run_folder, *arguments)) == message
    assert outcome(run_folder) == before


def test_existing_run_is_kept(cli: Cli, run_folder: Path) -> None:
    before = outcome(run_folder)
    assert "must not hold a run already" in failed(cli(*QUICK, "--run", run_folder))
    assert outcome(run_folder) == before


# --- wrong files ------------------------------------------------------------------------------------------------------


def _missing(folder: Path) -> None:
    shutil.rmtree(folder / "train")


def _other_classes(folder: Path) -> None:
    (folder / "test" / "b").rename(folder / "test" / "c")


def _corrupted(folder: Path) -> None:
    path = folder / "train" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:60])


def _other_size(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "train" / "b" / "1.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, r"\[image_folder\] .*one subfolder per class; got none in \S+/train$"),
        (_other_classes, r"\[data\.load\] .*the same classes; got \['b', 'c'\]"),
        (_corrupted, r"\[load_image\] \S+/train/b/1\.png must be a readable picture; got "),
        (_other_size, r"\[image_folder\] .*one size; got .+/train/b/1\.png"),
    ],
)
def test_damaged_data_folder(cli: Cli, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = pictures(tmp_path / "pictures")
    damage(folder)
    assert re.match(message, failed(cli("train", "mlp", "--data", folder)))
    assert not (tmp_path / "runs").exists()


def test_train_on_a_data_folder(cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    succeeded(cli("train", "mlp", "--data", folder, "--epochs", 1, "--run", "r"))
    assert re.search(r"^test accuracy .+ \([0-4] of 4\)$", succeeded(cli("eval", "r")), re.MULTILINE)
    picture = folder / "test" / "a" / "0.png"
    assert re.match(rf"{picture}\n +\d+\.\d\d%  [ab]\n", succeeded(cli("predict", "r", picture)))


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n no picture"], ids=["missing", "empty", "damaged"])
def test_predict_names_the_bad_picture(cli: Cli, run_folder: Path, tmp_path: Path, content: bytes | None) -> None:
    Image.fromarray(cached_mnist(False, None).images[0, 0]).save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    code, out, err = cli("predict", run_folder, "good.png", "bad.png")
    assert out.startswith("good.png\n")
    assert failed((code, "", err)).startswith("[load_image] bad.png must be a readable picture; got ")


def test_eval_with_other_data(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    two = pictures(tmp_path / "two")
    assert failed(cli("eval", run_folder, "--data", two)) == "[eval] the run knows 10 classes; got 2 in test"
    ten = pictures(tmp_path / "ten", classes="0123456789")
    assert failed(cli("eval", run_folder, "--data", ten)).startswith("[Normalize] needs 1 channels; got images")


def test_checkpoint_of_another_model(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, "mixed")
    Run.create("other", Config("lenet5", limit=100, epochs=1)).fit()
    for name in ("best.safetensors", "last.safetensors"):
        shutil.copy(f"other/{name}", f"mixed/{name}")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mixed").iterdir()}
    for command in (["eval", "mixed"], ["predict", "mixed", "a.png"], ["train", "--resume", "mixed"]):
        assert failed(cli(*command)).startswith("[load_state_dict] names must match Sequential; ")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mixed").iterdir()} == before


@pytest.mark.parametrize("file", ["config.json", "last.safetensors"])
def test_damaged_run_folder(cli: Cli, run_folder: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(run_folder, "damaged")
    path = tmp_path / "damaged" / file
    path.write_bytes(path.read_bytes()[:100])
    assert f"damaged/{file} is damaged" in failed(cli("train", "--resume", "damaged"))
    assert len(path.read_bytes()) == 100


# --- places that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "reason"), [("file/run", "Not a directory"), ("file", "File exists"), ("/proc/run", "No such file")]
)
def test_run_that_cannot_be_written(cli: Cli, tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine")
    message = failed(cli(*QUICK, "--run", folder))
    assert re.match(rf"\[write\] cannot write {folder}/config\.json; got: {reason}", message)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("kilobytes", "kept"), [(1100, {"best": 1}), (2100, {"best": 1, "last": 1})], ids=str)
def test_full_disk(cli: Cli, tmp_path: Path, kilobytes: int, kept: dict[str, int]) -> None:
    """A checkpoint has 0.96 MB: the first epoch has room for one or two, the second cannot replace them."""
    with tiny_disk(tmp_path / "disk", kilobytes) as disk:
        message = failed(cli(*QUICK, "--run", disk))
        assert re.match(r"\[write\] cannot write .+; got: No space left on device\. What was there is kept$", message)
        files = sorted(path.name for path in disk.iterdir())
        assert files == sorted(["config.json", "metrics.jsonl", *(f"{which}.safetensors" for which in kept)])
        assert {which: checkpoint.load(disk / f"{which}.safetensors")[1]["epoch"] for which in kept} == kept
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        succeeded(cli("train", "--resume", disk))
        succeeded(cli(*QUICK, "--run", "whole"))
        assert outcome(disk) == outcome(tmp_path / "whole")


def test_full_disk_under_the_output(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, "models"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert "No space left on device" in failed((result.returncode, "", result.stderr))


# --- diverging --------------------------------------------------------------------------------------------------------


def test_diverging_run_keeps_the_previous_checkpoint(cli: Cli, tmp_path: Path) -> None:
    """By the real command, because NumPy's warnings would be lines too many."""
    settings = ["--limit", "200", "--epochs", "1", "--optimizer", "sgd", "--lr", "0.1", "--run", "r"]
    succeeded(cli("train", "lenet5", *settings))
    config = tmp_path / "r" / "config.json"
    config.write_text(config.read_text().replace('"lr": 0.1', '"lr": 1e6'))
    before = outcome(tmp_path / "r")
    arguments = [*COMMAND, "train", "--resume", "r", "--epochs", "5"]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    message = failed((result.returncode, result.stdout, result.stderr))
    assert re.match(r"\[train\] the loss must stay finite; got (nan|inf) (in|after) epoch 2, .*lr \d+: try", message)
    assert outcome(tmp_path / "r") == before | {"config": config.read_bytes()}
