"""A local page that shows what networks make of an image, or of what a camera sees; also a program.

rtseg demo
rtseg demo --network=RUN --network=erfnet.safetensors --port=8000 --open

The page takes an image that is dropped, pasted or chosen, and the browser's camera. It lays the classes over it and
tells their shares of the pixels, what the network saw, and how long that took: the network alone, from the frame on
the host to the class map on the host. Reading a checkpoint and compiling for a new size of frames is told apart.
What the network sees of a frame is as predict has it: --size, what the run was evaluated at, or the frame itself.

It listens on this machine alone (--host=0.0.0.0 lets others in), fetches nothing from elsewhere and sends nothing
there; what was uploaded is deleted when it ends, with Ctrl-C or SIGTERM. Browsers give pages their camera only on
this machine or over https.
"""

import contextlib
import dataclasses
import functools
import html
import os
import pathlib
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.base.extras import optional
from rtseg_jax.base.files import absolute, one_line
from rtseg_jax.base.sizes import Pair
from rtseg_jax.data import files
from rtseg_jax.data.spec import ClassTable, Image3, Label
from rtseg_jax.inference import evaluator, pictures
from rtseg_jax.inference import network as networks
from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.programs.shared.process import prepare_process
from rtseg_jax.weights import checkpoint

KEPT = 4  # compiled programs, each for one checkpoint and one size of frames
CALLS, SECONDS = 5, 1.0  # a time is the median of so many calls, of fewer where they take longer
EXAMPLES = 4
SHOWN_SIDE = 1280  # of a picture on the page, in pixels
CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
STREAM_EVERY = 0.1  # seconds between the camera's frames
CAMERAS = 4  # at once; the frames of all take turns
LARGEST_FILE = "64mb"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HINT = "Drop an image, paste one, or take one with the camera."


@dataclasses.dataclass(frozen=True)
class Kept:
    """A checkpoint that can be chosen.

    Attributes:
        workdir: The folder of its run.
        step: That it is of.
        label: The run's name, the step, the mIoU that it was kept with, and the network.
    """

    workdir: pathlib.Path
    step: int
    label: str


def kept(workdirs: Sequence[pathlib.Path]) -> list[Kept]:
    """The checkpoints of runs and other networks, in their order; of a run, the best one first, then from the latest on.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
        ValueError: nothing given, or one twice; or what is no network.
    """
    if not workdirs or len(set(workdirs)) < len(workdirs):
        raise ValueError("give --network=PLACE, a network, or several different ones")
    common = os.path.commonpath([path.parent for path in workdirs])
    found = []
    for workdir in workdirs:
        if not workdir.is_dir():
            network = networks.load(workdir)
            found.append(Kept(workdir, network.step, f"{workdir.name} · {network.name}"))
            continue
        config = settings.read(workdir)
        folder = workdir / checkpoint.FOLDER
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; train with that workdir first")
        with checkpoint.open_manager(workdir, read_only=True) as manager:
            best, latest = manager.best_step(), manager.latest_step()
            steps = {step: (manager.metrics(step) or {}) for step in manager.all_steps()}
        if latest is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint yet")
        for step in sorted(steps, key=lambda step: (step != best, -step)):
            tags = [tag for tag, at in (("best", best), ("latest", latest)) if at == step]
            miou = steps[step].get("miou", -1)  # as checkpoint.save() writes what is not known
            parts = [
                os.path.relpath(workdir, common),
                ", ".join((f"step {step:,}", *tags)),
                *([f"{config.input.eval_split} mIoU {100 * miou:.2f} %"] if miou >= 0 else []),
                config.model.name,
            ]
            found.append(Kept(workdir, step, " · ".join(parts)))
    return found


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The class map of a frame, and what making it took.

    Attributes:
        ids: Class map of the frame's size.
        table: The classes' names and colours.
        network: Its name.
        step: The checkpoint's step.
        seen: (h, w) that the network saw.
        milliseconds: From the frame on the host to the class map on the host, the median of `calls`.
        calls: How many were timed.
        preparing: Seconds of reading the checkpoint, compiling and a first call; None where that was done before.
    """

    ids: Label
    table: ClassTable
    network: str
    step: int
    seen: Pair
    milliseconds: float
    calls: int
    preparing: float | None

    @property
    def shares(self) -> list[tuple[int, float]]:
        """(train id, share of the pixels) of the classes that occur, from the largest on."""
        counts = np.bincount(self.ids.ravel(), minlength=self.table.num_classes)
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda c: (-counts[c], c))
        return [(c, float(counts[c] / self.ids.size)) for c in order]


def predictor(
    *,
    size: Pair | str | None = None,
    max_pixels: int | None = None,
    dtype: str = "float32",
) -> Callable[..., Prediction]:
    """A function (workdir, step, frame, calls=CALLS) -> Prediction that threads may call; they take turns.

    It keeps the KEPT latest used programs, and raises what network.load() raises.

    Args:
        size: (h, w) that networks see; "own" for the frames' own; None as their runs were evaluated.
        max_pixels: Larger frames are shrunk for the network; None as their configs say.
        dtype: The type that is computed in.
    """
    turn = threading.Lock()

    @functools.lru_cache(maxsize=KEPT)
    def prepared(workdir: pathlib.Path, step: int, h: int, w: int) -> tuple[Any, ...]:
        network = networks.load(workdir, str(step)).seeing(
            size, max_pixels=max_pixels, dtype=dtype, quiet=True
        )
        network(np.zeros((h, w, 3), np.uint8))
        return network, network.sees.seen(network.sees.given((h, w)))

    def predict_frame(
        workdir: pathlib.Path, step: int, frame: Image3, calls: int = CALLS
    ) -> Prediction:
        with turn:
            start, before = time.perf_counter(), prepared.cache_info().misses
            network, seen = prepared(workdir, step, *frame.shape[:2])
            preparing = time.perf_counter() - start
            times = []
            while len(times) < calls and sum(times) < SECONDS:
                start = time.perf_counter()
                ids = network(frame)
                times.append(time.perf_counter() - start)
            return Prediction(
                ids=ids,
                table=network.table,
                network=network.name,
                step=step,
                seen=seen,
                milliseconds=1000 * statistics.median(times),
                calls=len(times),
                preparing=preparing if prepared.cache_info().misses > before else None,
            )

    return predict_frame


def examples(workdirs: Sequence[pathlib.Path], folder: pathlib.Path) -> tuple[list[str], str]:
    """Writes some images of the first evaluation set that can be read.

    Returns:
        The files, and what they are; none and "" where no set can be read.
    """
    for workdir in workdirs:
        try:
            config = settings.read(workdir)
            split = config.input.eval_split
            dataset = data.load(**settings.dataset_arguments(config, split) | {"cache": ""})
            paths = []
            for index in sorted(evaluator.spread(len(dataset), EXAMPLES)):
                paths.append(str(folder / f"{dataset.names[index].replace('/', '_')}.png"))
                Image.fromarray(dataset.load(index)[0]).save(paths[-1])
            return paths, f"{config.input.dataset} {split}"
        except (ValueError, OSError, ImportError):  # the data are elsewhere, or were drawn anew
            continue
    return [], ""


# Pieces of HTML


def _fact(what: str, figure: str, remark: str) -> str:
    return (
        f'<div><dt class="quiet">{what}</dt><dd>{html.escape(figure)}'
        f'<small class="quiet">{html.escape(remark)}</small></dd></div>'
    )


def overlaid(frame: Image3, prediction: Prediction) -> str:
    """The classes over the photo, whose opacity the page's style sets, as HTML; large frames are shrunk."""
    h, w = prediction.ids.shape
    shrink = min(1.0, SHOWN_SIDE / max(h, w))
    size = max(1, round(shrink * w)), max(1, round(shrink * h))
    photo = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    ids = Image.fromarray(prediction.ids).resize(size, Image.Resampling.NEAREST)
    ids.putpalette(np.array(prediction.table.palette, np.uint8).tobytes())
    names = ", ".join(prediction.table.class_names[c] for c, _ in prediction.shares)
    return (
        f'<figure class="overlaid" style="--w:{w};--h:{h}">'
        f'<img class="photo" decoding="sync" alt="photo" src="{pictures.data_uri(photo, "jpeg", quality=88)}">'
        f'<img class="classes" decoding="sync" alt="classes: {html.escape(names)}" src="{pictures.data_uri(ids, "png")}">'
        "</figure>"
    )


def facts(prediction: Prediction) -> str:
    """What the network saw and how long it took, as HTML."""
    device = jax.devices()[0]
    h, w = prediction.ids.shape
    calls = f"median of {prediction.calls} calls" if prediction.calls > 1 else "one call"
    tiles = [
        _fact(
            "network alone",
            f"{prediction.milliseconds:.3g} ms"
            if prediction.milliseconds < 1000
            else f"{prediction.milliseconds:,.0f} ms",
            f"{calls}, {device.device_kind}",
        ),
        _fact("network", prediction.network, f"step {prediction.step:,}"),
        _fact("it saw", "{}x{}".format(*prediction.seen), f"of a frame of {h}x{w}"),
    ]
    if prediction.preparing is not None:
        remark = "with reading the checkpoint and a first call; in no other time"
        tiles.append(_fact("compiled in", f"{prediction.preparing:.1f} s", remark))
    return f'<dl class="facts">{"".join(tiles)}</dl>'


def legend(prediction: Prediction) -> str:
    """The classes that occur with their colours and shares of the pixels, from the largest on, as HTML."""
    rows = []
    for c, share in prediction.shares:
        color = "#{:02x}{:02x}{:02x}".format(*prediction.table.palette[c])
        name = html.escape(prediction.table.class_names[c])
        shown = f"{100 * share:.1f} %" if share >= 0.0005 else "&lt; 0.1 %"
        rows.append(
            f'<tr><th scope="row"><i style="background:{color}"></i>{name}</th>'
            f'<td class="bar"><i style="width:{100 * share:.2f}%;background:{color}"></i></td>'
            f"<td>{shown}</td></tr>"
        )
    caption = '<caption class="quiet">share of the pixels</caption>'
    return f'<table class="legend">{caption}{"".join(rows)}</table>'


def _line(kind: str, text: str) -> str:
    role = ' role="alert"' if kind == "problem" else ""
    return f'<p class="{kind}"{role}>{html.escape(" ".join(text.split()))}</p>'


# The page

# Without commas between selectors: Gradio puts its own before each, and takes :is(a, b) apart.
_STYLE = """
.gradio-container { max-width: 1400px !important; }
#title .html-container { padding: 0; }
#title h1 { margin: 0; font-size: 26px; font-weight: 700; }
#choice input { text-overflow: ellipsis; padding-right: 28px; }
#view { min-height: 60px; }
#view .html-container { padding: 0; color: var(--body-text-color); }
.overlaid { position: relative; margin: 0 auto; aspect-ratio: var(--w) / var(--h); overflow: hidden;
  width: min(100%, 68vh * var(--w) / var(--h)); border-radius: 6px; }
.overlaid img { position: absolute; inset: 0; width: 100%; height: 100%; }
.overlaid .classes { opacity: var(--classes-opacity, OPACITY); image-rendering: pixelated; }
.quiet { display: block; font-size: 12px; font-weight: 400; text-align: left; opacity: 0.7; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 10px 20px;
  margin: 14px 0; }
.facts dd { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
.legend { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.legend caption { display: table-caption; }
.legend th { position: relative; padding: 2px 0 2px 30px; font-weight: 400; text-align: left; }
.legend th i { position: absolute; left: 0; top: 5px; width: 22px; height: 13px; border-radius: 2px;
  border: 1px solid #8888; }
.legend td { padding: 2px 0 2px 12px; text-align: right; white-space: nowrap; }
.legend .bar { width: 50%; }
.legend .bar i { display: block; height: 9px; min-width: 2px; border-radius: 2px; border: 1px solid #8888; }
.hint { padding: 14px; border-radius: 6px; background: var(--background-fill-secondary); }
.problem { padding: 14px; border-radius: 6px; overflow-wrap: anywhere; color: #7a1212; background: #fde8e8; }
""".replace("OPACITY", str(pictures.OPACITY))

_SET_OPACITY = "(v) => document.documentElement.style.setProperty('--classes-opacity', v / 100)"


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the page shows of what is chosen on it; Gradio calls the methods.

    Attributes:
        gradio: The module.
        workdirs: Where the networks are, as of networks.load().
        predict_frame: What predictor() returns.
        folder: Where uploads are, and what can be downloaded goes.
    """

    gradio: Any
    workdirs: Sequence[pathlib.Path]
    predict_frame: Callable[..., Prediction]
    folder: pathlib.Path

    def choices(self) -> list[tuple[str, str]]:
        """The checkpoints that there are: what each is called, and its place in `workdirs` with its step."""
        found = kept(self.workdirs)
        return [(k.label, f"{self.workdirs.index(k.workdir)}:{k.step}") for k in found]

    def refresh(self, chosen: str) -> Any:
        """The list anew: a run that goes on writes checkpoints and deletes others."""
        found = self.choices()
        values = [value for _, value in found]
        return self.gradio.Dropdown(
            choices=found, value=chosen if chosen in values else values[0], interactive=True
        )

    def image(self, given: dict[str, Any] | None, chosen: str) -> tuple[str, Any]:
        """What a network makes of an uploaded image, and its class map to download."""
        if given is None:
            return _line("hint", HINT), self._nothing()
        path = pathlib.Path(given["path"]).resolve()
        if not path.is_relative_to(self.folder):
            return _line("problem", f"{path.name}: was not uploaded here"), self._nothing()
        shown, prediction = self._shown(lambda: files.read_frame(path), chosen, CALLS)
        if prediction is None:
            shown = shown.replace(html.escape(str(path)), html.escape(path.name))
            return shown, self._nothing()
        file = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / f"{path.stem}_ids.png"
        Image.fromarray(prediction.ids).save(file)
        return shown, self.gradio.DownloadButton(value=str(file), interactive=True)

    def camera(self, frame: np.ndarray | None, chosen: str) -> tuple[str, Any]:
        """What a network makes of a frame of the camera."""
        if frame is None:
            return _line("hint", HINT), self._nothing()
        read = functools.partial(np.ascontiguousarray, frame[..., :3])
        return self._shown(read, chosen, 1)[0], self._nothing()

    def _nothing(self) -> Any:
        return self.gradio.DownloadButton(value=None, interactive=False)

    def _shown(
        self, read: Callable[[], Image3], chosen: str, calls: int
    ) -> tuple[str, Prediction | None]:
        run, _, step = chosen.partition(":")
        try:
            frame = read()
            prediction = self.predict_frame(self.workdirs[int(run)], int(step), frame, calls)
        except (ValueError, OSError) as error:
            return _line("problem", str(error)), None
        except jax.errors.JaxRuntimeError as error:
            return _line("problem", f"the network failed on it: {str(error)[:200]}"), None
        return overlaid(frame, prediction) + facts(prediction) + legend(prediction), prediction


def page(answers: Answers) -> Any:
    """The page as Gradio's Blocks.

    Raises:
        FileNotFoundError, ValueError: as of kept().
    """
    gradio, found = answers.gradio, answers.choices()
    paths, of = examples(answers.workdirs, answers.folder)
    plain = {"js_on_load": None, "apply_default_css": False}
    blocks = gradio.Blocks(title="rtseg_jax", analytics_enabled=False, delete_cache=(600, 3600))
    with blocks:
        gradio.HTML("<h1>Real-time semantic segmentation</h1>", **plain, elem_id="title")
        with gradio.Row():
            with gradio.Column(scale=5, min_width=320):
                with gradio.Tab("Image"):
                    image = gradio.Image(
                        label="Image",
                        sources=["upload", "webcam", "clipboard"],
                        webcam_options=gradio.WebcamOptions(mirror=False),
                        buttons=["fullscreen"],
                        height=360,
                        elem_id="image",
                    )
                    if paths:
                        gradio.Examples(
                            [[path] for path in paths],
                            [image],
                            label=f"Images of {of}",
                            cache_examples=False,
                        )
                with gradio.Tab("Live camera"):
                    camera = gradio.Image(
                        label="Camera",
                        sources=["webcam"],
                        streaming=True,
                        webcam_options=gradio.WebcamOptions(mirror=False, constraints=CAMERA),
                        height=360,
                        elem_id="camera",
                    )
                choice = gradio.Dropdown(
                    found,
                    value=found[0][1],
                    label="Checkpoint",
                    filterable=False,
                    interactive=True,
                    elem_id="choice",
                )
                opacity = gradio.Slider(
                    0, 100, round(100 * pictures.OPACITY), step=1, label="Opacity of the classes, %"
                )
            with gradio.Column(scale=6, min_width=320):
                view = gradio.HTML(_line("hint", HINT), **plain, elem_id="view")
                download = gradio.DownloadButton(
                    "Class numbers as PNG", interactive=False, elem_id="download"
                )
        blocks.load(
            answers.refresh, choice, choice, api_visibility="private", show_progress="hidden"
        )
        opacity.change(None, opacity, None, js=_SET_OPACITY, api_visibility="private")
        gradio.on(
            [image.change, choice.change],
            answers.image,
            [image, choice],
            [view, download],
            preprocess=False,  # Gradio's own reading fails on what is no image
            api_visibility="private",
            show_progress_on=[view],
        )
        camera.stream(
            answers.camera,
            [camera, choice],
            [view, download],
            api_visibility="private",
            show_progress="hidden",
            stream_every=STREAM_EVERY,
            concurrency_limit=CAMERAS,
        )
    return blocks


# The program


def serve(
    workdirs: Sequence[pathlib.Path],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = False,
    **options: Any,
) -> None:
    """Serves the page until KeyboardInterrupt.

    Args:
        workdirs: Where the networks are, as of networks.load().
        host: That it listens on.
        port: That it listens on; None or 0 for one that Gradio finds free.
        browser: Whether one is opened.
        **options: Arguments of predictor().

    Raises:
        ValueError: no gradio, a host or port that cannot be listened on, or as of kept().
        FileNotFoundError: as of kept().
    """
    with tempfile.TemporaryDirectory(prefix="rtseg_demo_", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        reached = ",".join(filter(None, (before, *LOOPBACK, host)))
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_TEMP_DIR": folder,
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": reached,  # it asks itself whether it is up
            "no_proxy": reached,
        }
        gradio = optional("gradio", "demo")
        uploads = pathlib.Path(folder).resolve()
        blocks = page(Answers(gradio, workdirs, predictor(**options), uploads))
        fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
        try:
            socket.getaddrinfo(host, None)
            blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port or None,
                inbrowser=browser,
                share=False,
                quiet=True,
                show_error=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                max_file_size=LARGEST_FILE,
                footer_links=[],
                theme=gradio.themes.Default(font=fonts[0], font_mono=fonts[1]),
                css=_STYLE,
            )
            if host not in LOOPBACK:
                print(f"whoever reaches {host} can use this page")
            print(f"{blocks.local_url} shows it; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(3600)
        except OSError as error:
            raise ValueError(
                f"{host}, port {port or 'of any number'}, cannot be listened on ({one_line(error)});"
                " give another --port or --host"
            ) from error
        finally:
            blocks.close(verbose=False)


def define(flags: Flags) -> None:
    """Defines the flags."""
    text = "A run's folder, a bundle, a public checkpoint; may be repeated. Those that are shipped if not given."
    flags.strings("network", text)
    flags.strings("workdir", "Another name for --network.")
    flags.string("host", "Address that the page is served on.", "127.0.0.1")
    flags.count("port", "Port of the page; a free one if not given.", None, low=0, high=65535)
    flags.switch("open", "Open the page in a browser.")
    flags.size("that the network sees, or 'own'; as evaluated if not given.")
    flags.count(
        "max_pixels", "Larger frames are shrunk for it; the config's if not given.", None, low=1024
    )
    flags.choice("dtype", "The type that is computed in.", "float32", ["float32", "bfloat16"])


def main(given: Given, _: list[str]) -> None:
    """Serves the page until Ctrl-C."""
    places = [*given.network, *given.workdir] or list(networks.shipped())
    prepare_process(many_threads=True)
    for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has SIGHUP
            signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            [absolute(place) for place in places],
            host=given.host,
            port=given.port,
            browser=given.open,
            size=given.size,
            max_pixels=given.max_pixels,
            dtype=given.dtype,
        )
    with contextlib.suppress(OSError):  # the terminal may be gone
        print("ended", flush=True)
    os._exit(0)  # a thread may be compiling, which the interpreter's own end does not survive


PROGRAM = Program(__doc__, define, main)
