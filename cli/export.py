"""tgdfer export: finished runs -> one file."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import OtherCodeOption, OtherEncoderOption, PretrainedOption
from cli.show import next_step, show


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs (see tgdfer runs)."),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE.tgdfer", help="The new file.")],
    with_encoder: Annotated[
        bool, typer.Option("--with-encoder", help="Put the encoder's weights into the file.")
    ] = False,
    encoder: OtherEncoderOption = None,
    pretrained: PretrainedOption = None,
    other_code: OtherCodeOption = False,
) -> None:
    """Write trained networks to one file, which predicts where there are no runs and no store.

    The file holds networks, prompts, class texts and their features, and says which encoder and
    preprocessing belong to it; it is refused if a byte of it was changed, or with another encoder.
    A model card in Markdown is written beside it.

    \b
    One run:
      tgdfer export runs/0123456789abcdef model.tgdfer
    An ensemble, with the encoder:
      tgdfer export runs/0123456789abcdef runs/fedcba9876543210 model.tgdfer --with-encoder
    """
    from pipeline.predict.bundle import SUFFIX
    from pipeline.resources import check_writable
    from pipeline.train.record import check_finished

    for run in runs:
        check_finished(run)
    check_writable(file.parent, f"FILE{SUFFIX}")
    from pipeline.predict.export import card_path, check_new
    from pipeline.predict.export import export as write

    check_new(file)
    write(runs, file, with_encoder, encoder, pretrained, other_code)
    print(f"written: {show(file)} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"written: {show(card_path(file))}")
    next_step("tgdfer", "predict", "VIDEO", "--run", file)
