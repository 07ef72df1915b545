"""pix2pix-fast: the same engine from a shell.

Results go to stdout, progress and errors to stderr, one line per error; --debug shows the traceback
instead. Exit codes: 0 fine, 1 something failed, 2 wrong usage, 130 interrupted. click and rich live
here and in train/ only; everything else is imported by the verb that needs it, so that --help stays
quick.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any

import click

from .. import __version__
from . import films, models, pictures, training
from .words import reason_of, say


class _Verbs(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False  # click would print usage errors in four lines
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by who started us
                setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115, PTH123
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name must not end a batch; stderr is so already
            sys.stdout.reconfigure(errors="backslashreplace")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files are no errors of ours
        try:
            code = super().main(*args, **extra)
        except click.ClickException as error:
            say(error.format_message())
            code = error.exit_code
        except click.Abort:  # Ctrl-C outside of a verb
            code = 130
        except OSError as error:  # --help outside of a verb, into a file on a full disk
            say(f"standard output: {reason_of(error)}")
            code = 1
        sys.exit(code or 0)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Translate pictures with pix2pix models, fast, on this machine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _verb in (
    *(pictures.translate, pictures.demo),
    *(films.video, films.live, films.serve),
    *(models.convert, models.export, models.build_trt, models.info, models.verify, models.bench),
    *(training.train, training.evaluate, training.study_page, training.study_score),
):
    main.add_command(_verb)
