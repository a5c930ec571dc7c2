"""The command `rtseg PROGRAM ...`; each program has a --help of its own."""

import difflib
import importlib
import sys
from collections.abc import Sequence

# word -> (module, what the program does)
PROGRAMS = {
    "train": ("main", "train a network, or go on with a run"),
    "check": ("programs.check_data", "read every file of a data set, and say what is wrong"),
    "evaluate": ("programs.evaluate.main", "score a network on a split of its data set"),
    "predict": ("programs.predict.main", "segment images, videos and cameras"),
    "report": ("programs.report.main", "a page about one run, or several side by side"),
    "demo": ("programs.demo", "try networks on images and the camera, in the browser"),
    "export": ("programs.export", "write a network as StableHLO, ONNX or a bundle"),
    "convert": ("programs.convert", "convert weights from and to PyTorch's files"),
    "summary": ("programs.summary", "parameters and multiply-adds of every network"),
    "bench": ("programs.bench.main", "measure speed against PyTorch and onnxruntime"),
}


def help_text() -> str:
    """The programs, a line each."""
    lines = (f"  rtseg {word:<9} {text}" for word, (_, text) in PROGRAMS.items())
    return "\n".join(("usage: rtseg PROGRAM [--flag=value ...]", "", *lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program that the first word names with the words after it; returns the exit code."""
    word, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if word in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if word not in PROGRAMS:
        near = difflib.get_close_matches(word, PROGRAMS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose of {', '.join(PROGRAMS)}"
        print(f"error: there is no program '{word}'; {hint}", file=sys.stderr)
        return 1
    return importlib.import_module(f"rtseg_jax.{PROGRAMS[word][0]}").PROGRAM.run(rest)


if __name__ == "__main__":
    sys.exit(main())
