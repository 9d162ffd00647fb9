"""The program ``regnet-deploy``: finds the command, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from regnet_deploy import __version__
from regnet_deploy.errors import RegnetDeployError, did_you_mean

#: Commands in the order of the pipeline; each is ``command`` of the module of its name in this package.
COMMANDS = (
    "select",
    "train",
    "profile",
    "export",
    "engines",
    "verify",
    "predict",
    "show",
    "serve",
    "bench",
    "tune",
    "package",
    "spaces",
    "sweep",
    "analyze",
)


class Pipeline(click.Group):
    """A group whose commands are imported when they are called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"regnet_deploy.cli.{cmd_name}").command
        return command

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
    """From a compute budget to a served model.

    \b
    Example:
      regnet-deploy select --gflops 0.4 --classes 10
      regnet-deploy train --data my-images
      regnet-deploy export --onnx
      regnet-deploy profile
      regnet-deploy serve
    """


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code: 0 done, 2 cannot be done so, 3 not proved, 130 interrupted."""
    try:
        result: Any = main.main(arguments, prog_name="regnet-deploy", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except RegnetDeployError as error:
        code = _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.UsageError as error:
        where = f"; `{error.ctx.command_path} --help` shows how" if error.ctx else ""
        code = _fail(error.format_message().rstrip(".") + where, 2)
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = 0
    except OSError as error:
        if error.filename is not None:
            raise  # a file that a command should have spoken for: a bug
        code = _fail(f"cannot write the output: {error.strerror}", 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", 130)
    daemon = sys.modules.get("regnet_deploy.serving.daemon_thread")  # only a command that served has it
    if daemon is not None:
        daemon.exit_if_threads_remain(code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    click.echo(f"regnet-deploy: {' '.join(message.split())}", err=True)
    return code
