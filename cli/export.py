"""tgdfer export: finished runs -> one file."""

import os
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
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.tgdfer|DIR", help="The new file, or a folder for all files."),
    ],
    with_encoder: Annotated[
        bool, typer.Option("--with-encoder", help="Put the encoder's weights into the file.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write the networks as an ONNX graph.")
    ] = False,
    encoder: OtherEncoderOption = None,
    pretrained: PretrainedOption = None,
    other_code: OtherCodeOption = False,
) -> None:
    """Write trained networks to one file, which predicts where there are no runs and no store.

    The file holds networks, prompts, class texts and their features, and says which encoder and
    preprocessing belong to it; it is refused if a byte of it was changed, or with another encoder.
    A model card in Markdown is written beside it. In a folder, the files have the names that model
    hubs expect.

    \b
    One run:
      tgdfer export runs/0123456789abcdef model.tgdfer
    An ensemble, with the encoder:
      tgdfer export runs/0123456789abcdef runs/fedcba9876543210 model.tgdfer --with-encoder
    A folder to upload, with an ONNX graph of what follows the encoder:
      tgdfer export runs/0123456789abcdef model --with-encoder --onnx
    """
    from pipeline.resources import check_writable
    from pipeline.train.record import check_finished

    for run in runs:
        check_finished(run)
    check_writable(file.parent, "FILE")
    from pipeline.predict.export import export as write
    from pipeline.predict.export import exported_files
    from pipeline.predict.graph import check_onnx

    exported_files(file, onnx)
    if onnx:
        check_onnx()
    files = write(runs, file, with_encoder, onnx, encoder, pretrained, other_code)
    for path in filter(None, (files.bundle, files.card, files.graph)):
        print(f"written: {show(os.path.relpath(path))} ({path.stat().st_size / 1e6:.1f} MB)")
    next_step("tgdfer", "predict", "VIDEO", "--run", os.path.relpath(files.bundle))
