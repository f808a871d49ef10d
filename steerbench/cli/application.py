"""All commands, and how each of them may end."""

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from steerbench.cli import (
    across_command,
    agree_command,
    check_command,
    compare_command,
    exchange_command,
    generate_command,
    judge_command,
    latency_command,
    leaderboard_command,
    list_command,
    new_command,
    pack_command,
    power_command,
    report_command,
    reward_command,
    run_command,
    testbed_command,
    verdicts_command,
)
from steerbench.cli.console import complain, out, tell
from steerbench.cli.interruption import as_it_came, farewell, status
from steerbench.cli.repetition import Commands
from steerbench.errors import SteerbenchError
from steerbench.version import __version__


class _Commands(TyperGroup):
    """A user's mistake ends with 2 and one sentence, an interruption with 130 or 143, a bug with its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SteerbenchError as error:
            complain(f"error: {error}")
            raise typer.Exit(2) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            from steerbench.models.machine import OUT_OF_MEMORY

            complain(f"error: {OUT_OF_MEMORY}")
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            complain(f"error: {error.strerror}; free some space and run the same command again.")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as raised:
            interruption = as_it_came(raised)
            tell(farewell(ctx.invoked_subcommand, interruption), "yellow")
            raise typer.Exit(status(interruption)) from None


app = Commands(
    name="steerbench",
    cls=_Commands,
    help="Which steering method for your language model, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run_command.run)
app.command("list")(list_command.list_)
app.command()(leaderboard_command.leaderboard)
app.command()(compare_command.compare)
app.command()(agree_command.agree)
app.command()(across_command.across)
app.command()(pack_command.pack)
app.command()(power_command.power)
app.command()(verdicts_command.verdicts)
app.command()(latency_command.latency)
app.command()(report_command.report)
app.command()(generate_command.generate)
app.command()(exchange_command.export)
app.command("import")(exchange_command.import_)
app.command()(judge_command.judge)
app.command()(check_command.check)
app.add_typer(new_command.new, name="new")
app.add_typer(reward_command.app, name="reward")
app.add_typer(testbed_command.app, name="testbed")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit
