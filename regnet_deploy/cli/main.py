"""The program ``regnet-deploy``: finds the command, and reports an error as one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import keyword
import sys
from typing import Any, NoReturn

import click

from regnet_deploy import __version__
from regnet_deploy.cli.streams import discard, escape_what_cannot_be_shown, flush_or_discard, open_closed_streams
from regnet_deploy.errors import RegnetDeployError, did_you_mean

#: Commands in the order of the pipeline, with what each does; each is ``command`` of the module that
#: :func:`load_command` imports.
COMMANDS = {
    "select": "Select the best network for a budget of MACs or of time.",
    "calibrate": "Fit a latency model to networks measured on this machine.",
    "measurements": "List, merge and export measured times.",
    "import": "Make a bundle of weights of another library.",
    "weights": "List public weights of RegNets.",
    "check": "Check a folder of images before training.",
    "train": "Train the network on a folder of images.",
    "tune-training": "Search the recipe that trains the network best.",
    "profile": "Count MACs and parameters, and measure latency.",
    "export": "Export to ONNX and TensorRT, and prove the result.",
    "export-weights": "Write the weights for timm, torchvision, pycls or transformers.",
    "engines": "List or build TensorRT engines.",
    "verify": "Check all files and exported networks of a bundle.",
    "evaluate": "Measure accuracy on labeled images.",
    "predict": "Classify images.",
    "show": "Show the model card.",
    "serve": "Start the server (HTTP and gRPC).",
    "bench": "Measure a running server under load.",
    "tune": "Find the fastest settings of the server.",
    "package": "Write folders for Triton, KServe, Ray Serve or compose.",
    "recipes": "List training recipes, or print one as a file.",
    "spaces": "List design spaces, or write one as a file.",
    "sweep": "Train networks that are drawn from a design space.",
    "analyze": "Compare the results of sweeps.",
}


def load_command(name: str) -> click.Command:
    """Import the module of a command, and return the command; a name that is a keyword has ``_`` at its end."""
    module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    command: click.Command = importlib.import_module(f"regnet_deploy.cli.{module}").command
    return command


class Pipeline(click.Group):
    """A group whose commands are imported when they are called, not for its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the pipeline."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with what each does."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command named by the first argument, or suggest the nearest."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            raise click.UsageError(
                f"no command {name!r}{did_you_mean(name, COMMANDS)}; there are {', '.join(COMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Pipeline, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="regnet-deploy")
def main() -> None:
    """From a compute budget to a served image classifier.

    All commands read and extend one folder, the bundle (./regnet-bundle by default). `regnet-deploy COMMAND --help`
    describes the options of a command.

    \b
    Example:
      regnet-deploy select --gflops 0.4
      regnet-deploy train --data my-images
      regnet-deploy export --data my-images
      regnet-deploy profile
      regnet-deploy serve
    """


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 an input cannot be used, 3 a proof failed, 130 interrupted."""
    open_closed_streams()
    escape_what_cannot_be_shown()
    try:
        result: Any = main.main(arguments, prog_name="regnet-deploy", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except RegnetDeployError as error:
        code = _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(OSError):
            error.show()
        code = error.exit_code
    except click.UsageError as error:
        where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        code = _fail(error.format_message().rstrip(".") + where, 2)
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except BrokenPipeError:
        discard(sys.stdout)  # or the interpreter reports an error at its end
        code = 0
    except OSError as error:
        if error.filename is not None:
            raise  # the command should have reported this file: a bug
        code = _fail(f"cannot write the output: {error.strerror}", 2)
        discard(sys.stdout)
    except (click.Abort, KeyboardInterrupt) as error:
        # click raises Abort from the KeyboardInterrupt, and a command may say more
        reason = str(error.__cause__ or error)
        code = _fail(f"interrupted: {reason}" if reason else "interrupted", 130)
    flush_or_discard()
    daemon = sys.modules.get("regnet_deploy.serving.daemon_thread")  # only a command that served has it
    if daemon is not None:
        daemon.exit_if_threads_remain(code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    from regnet_deploy.cli.output import print_message  # not needed by --help

    print_message(f"regnet-deploy: {' '.join(message.split())}")
    return code
