"""The command `reg4pru`, also `python -m reg4pru` and, on several devices, `accelerate launch -m reg4pru`."""

import errno
import importlib
import sys

from .common.consoles import show_what_can_be_shown

# Command → module with a `main`, and what it does. Modules are imported when they are needed: torch takes seconds.
COMMANDS = {
    "train": ("train", "train a model from a recipe, on one or several devices"),
    "finetune": ("finetune", "fine-tune a checkpoint with the Trainer of transformers"),
    "prune": ("prune", "prune a checkpoint that was never trained for it, on images without labels"),
    "evaluate": ("evaluate", "measure the accuracy of a checkpoint at several keep rates"),
    "predict": ("predict", "segment images"),
    "app": ("app.__main__", "show in a browser what pruning does to an image"),
    "export": ("export", "write a pruned model as ONNX"),
    "benchmark": ("benchmark", "measure time, operations and memory against the dense model; compare engines"),
    "tune": ("tune", "find the most accurate keep rates for a budget in milliseconds"),
    "study": ("study.__main__", "train and measure many variants; tables and figures"),
    "prepare": ("prepare", "turn images with masks or label maps into a data set for the Hub"),
    "push": ("push", "push a checkpoint to the Hub, with its card"),
}


def usage() -> str:
    """What `reg4pru --help` prints."""
    lines = [f"  {name:<{max(map(len, COMMANDS))}}  {what}" for name, (_, what) in COMMANDS.items()]
    more = "reg4pru COMMAND --help shows its flags and an example."
    return "\n".join(["usage: reg4pru COMMAND [options]", "", *lines, "", more])


def main() -> int | None:
    """
    Run one command; its exit status.

    Returns:
        `int` or `None`: 2 for a command that there is not, 1 if the disk is full, 130 after an interruption, else that
        of the command.
    """
    show_what_can_be_shown()
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        print(usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        print(f"reg4pru: error: there is no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    sys.argv = [f"reg4pru {name}", *arguments[1:]]
    try:
        return importlib.import_module(f"reg4pru.{COMMANDS[name][0]}").main()
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # which no check of the output folder foresees
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"reg4pru {name}: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
