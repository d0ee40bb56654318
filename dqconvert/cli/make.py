"""Commands that make files of a float checkpoint: ``convert``, ``finetune``, ``search-bits``, ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqconvert.commands.options import (
    Changes,
    Checkpoint,
    Data,
    Example,
    Integer,
    Model,
    Out,
    Output,
    QConfigName,
    Search,
    Training,
    qconfig_option,
)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The float model's checkpoint; with --integer, or a prepared file.")
    ],
    out: Out,
    model: Model,
    changes: Changes,
    output: Output,
    qconfig: Annotated[
        str | None,
        qconfig_option("A preset, or a .toml or .json file. Default: int8-dq, with --calibrate int8-ptq+."),
    ] = None,
    example: Example = None,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="FILE|FOLDER", help="Inputs to set the ranges from.")
    ] = None,
    integer: Integer = False,
    no_fold: Annotated[
        bool, typer.Option("--no-fold", help="Compute the rows of all nodes, also of those that are alike.")
    ] = False,
) -> None:
    """Convert a float checkpoint to a prepared file: quantizers inserted, ready to train on. Or to an integer file.

    CKPT is a state_dict saved by torch.save or as safetensors, a training
    checkpoint that holds one, or a pickled module (with --trust-pickle;
    --model is then not needed). With --calibrate the result can be
    evaluated at once, and the command says how far it is from the float
    model on that data; without, it is for training on.

    With --integer the result is for inference: a prepared file that was
    trained, or a checkpoint that is prepared and calibrated on the way,
    becomes a file that `dqconvert run` and dqconvert.load need no model for.

    \b
    --set changes a field of the config for all values of a kind (weight,
    activation, message, aggregate), of the protection or of all; repeat it:
      --set activation.bits=4            4 bits for activations
      --set weight.symmetric=true        --set message.range=minmax
      --set protect.p_max=0.2            --set aggregate=float
      --set norm=nodes                   --set 'protect.roles=["message"]'

    \b
    --rule makes an exception for a part of the model. MODULE is a regular
    expression for the whole path of a module, as `dqconvert inspect` shows
    it; ROLE is weight, input, feature, edge_weight, message, aggregate,
    update, or a kind; SPEC is float, or fields with commas. The first rule
    that matches a value wins; quote it for the shell:
      --rule 'convs\\.0.*=float'          all of the first layer
      --rule '@edge_weight=float'        all attention coefficients
      --rule 'convs\\.1@message=bits=5,range=minmax'

    Example: dqconvert convert gcn.pt -o gcn.dq --model torch_geometric.nn:GCN
    --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.convert import convert as run

    run(
        model.of(checkpoint),
        out,
        output,
        qconfig=qconfig,
        changes=changes,
        example=example,
        calibrate=calibrate,
        integer=integer,
        fold=not no_fold,
    )


def finetune(
    checkpoint: Checkpoint,
    out: Out,
    data: Data,
    model: Model,
    training: Training,
    changes: Changes,
    output: Output,
    qconfig: QConfigName = "int8-dq+",
    example: Example = None,
    integer: Integer = False,
) -> None:
    """Quantize a trained float checkpoint and train it to predict as it did: no labels needed, no code to write.

    The model is prepared, calibrated on the data, and trained to give the
    float model's predictions on it; with --labels, the labels too. The best
    epoch is kept: by accuracy on the rows of --validation, else by agreement
    with the float model. --data holds Data objects, or a tuple or dict of
    forward's arguments; a list of graphs is gone through one by one, or in
    shuffled batches of --batch-size.

    Example: dqconvert finetune gcn.pt --data cora.pt -o gcn.int --integer
    --model torch_geometric.nn:GCN --kwargs '{"in_channels": 16, ...}'
    --qconfig int4-dq+ --labels y --mask train_mask --validation val_mask
    """
    from dqconvert.commands.finetune import finetune as run

    source = model.of(checkpoint)
    run(source, out, data, training, output, qconfig=qconfig, changes=changes, example=example, integer=integer)


def search_bits(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The config to write: .toml or .json.")],
    data: Data,
    model: Model,
    search: Search,
    changes: Changes,
    output: Output,
    qconfig: QConfigName = "int4-dq+",
    example: Example = None,
) -> None:
    """Choose a width for each value of a trained model, within a budget of average bits, and write a config.

    Each value is rounded alone at each width, and the distance of the outputs
    to the float model's is measured on the data; the widths of the least sum
    within the budget are written. The config is for --qconfig of `dqconvert
    finetune` and `dqconvert convert`.

    Example: dqconvert search-bits gcn.pt --data cora.pt --budget 4.0 -o bits.toml
    --model torch_geometric.nn:GCN --kwargs '{"in_channels": 16, ...}'
    """
    from dqconvert.commands.search_bits import search_bits as run

    run(model.of(checkpoint), out, data, search, output, qconfig=qconfig, changes=changes, example=example)


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A prepared file that was trained or calibrated.")],
    out: Out,
    model: Model,
    output: Output,
    format: Annotated[str | None, typer.Option(metavar="NAME", help="onnx or pt2. Default: what OUT ends in.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="ONNX: round in float, as training does.")] = False,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="ONNX: onnxruntime, tensorrt or openvino: check what it takes.")
    ] = None,
    example: Example = None,
) -> None:
    """Write a prepared file as ONNX or as a torch.export program, for other runtimes.

    An integer file can be written as .pt2, without --model. --example chooses
    among the forms of arguments that the model was called on.

    Example: dqconvert export gcn.dq -o gcn.onnx --model torch_geometric.nn:GCN
    --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.export import export as run

    run(model.of(file), out, output, format=format, exact=exact, target=target, example=example)
