"""A float network from an ONNX file, as a torch module with the weights inside.

A Softmax that gives the output is left out, since teachers give logits. All that has no counterpart is refused at once,
by operator, attribute and node.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers.models.onnx_file import DOMAINS, File, Refusal
from approx_env.teachers.models.onnx_operators import counterpart

CHANNELS = 3
IMAGES = "images"  # name of the tensor that a network takes
RESERVED = {*dir(nn.Module()), "image_size", "steps", "note"}  # names that no module of a network may have
# Name of a tensor, what gives it (a module by its name, or a function), and the tensors that this reads.
Step = tuple[str, str | Callable[..., torch.Tensor], tuple[str, ...]]


class Network(nn.Module):
    """Torch modules, concatenations and additions, run in the order of an ONNX file's nodes."""

    def __init__(self, image_size: int, modules: dict[str, nn.Module], steps: list[Step], note: str):
        super().__init__()
        self.image_size, self.steps, self.note = image_size, steps, note
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(n, 3, image_size, image_size) float` -> logits `(n, classes) float`."""
        tensors = {IMAGES: images}
        for name, run, sources in self.steps:
            read = [tensors[source] for source in sources]
            if run is torch.cat:
                tensors[name] = torch.cat(read, 1)
            else:
                tensors[name] = (getattr(self, run) if isinstance(run, str) else run)(*read)
        return tensors[name]


def read(path: Path) -> Network:
    """The network of an ONNX file. Its `note` says what was left out, if anything.

    Raises:
        InputError: the file cannot be read (see `File`), or does what no torch module here does, with each such node.
    """
    return _Reader(File(path)).network()


class _Reader:
    """One file on its way to a module: visits the nodes once, in the file's order, which is one of execution."""

    def __init__(self, file: File):
        self._file = file
        self._readers = Counter(name for node in file.graph.node for name in node.input)
        self._modules: dict[str, nn.Module] = {}
        self._steps: list[Step] = []
        self._tensors: dict[str, str] = {}  # names in the file -> the step's name
        self._unknown: set[str] = set()  # tensors of refused nodes
        self._biased: dict[str, nn.Module] = {}  # what gave a tensor, if a bias may still be added to it

    def network(self) -> Network:
        """The module; errors of `read`."""
        side = self._visit_input()
        graph, named = self._file.graph, f"--model {self._file.path}"
        refused: dict[str, list[str]] = defaultdict(list)  # what is wrong -> nodes
        for node in graph.node:
            try:
                self._visit(node)
            except Exception as error:  # a malformed node makes torch, NumPy and onnx's reference raise anything
                text = error if isinstance(error, Refusal) else f"is malformed ({' '.join(str(error).split())[:100]})"
                refused[f"{node.op_type} {text}"].append(str(node.name or node.output[0]))
                self._unknown |= set(node.output)  # what follows is not to be blamed for this one
                self._tensors |= dict.fromkeys(node.output, IMAGES)
        problems = [f"{named}: {what}: in {', '.join(nodes)}" for what, nodes in refused.items()]
        last = graph.output[0].name
        if len(graph.output) > 1:
            problems.append(f"{named} must have one output, the logits, got {len(graph.output)}")
        elif not problems and (not self._steps or self._tensors.get(last) != self._steps[-1][0]):
            problems.append(
                f"{named}: its output '{last}' must be what it computes last from the images: export it anew"
            )
        if problems:
            raise InputError(problems)
        if len(self._file.shape(last)) == 4:
            self._run("logits", nn.Flatten(), self._tensors[last])
        dropped = any(node.op_type == "Softmax" for node in graph.node)
        note = f"{self._file.path}: the Softmax at the end is left out, since a teacher gives logits" if dropped else ""
        return Network(side, self._modules, self._steps, note)

    def _visit_input(self) -> int:
        """Binds the images, and gives their side."""
        names = [each.name for each in self._file.graph.input if each.name not in self._file.constants]
        shapes = [self._file.shape(name) for name in names]
        match shapes:
            case [(_, channels, int(side), width)] if channels == CHANNELS and side == width > 0:
                self._tensors[names[0]] = IMAGES
                return side
        told = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)) or "none"
        raise InputError(
            f"--model {self._file.path} must have one input of shape (n, {CHANNELS}, side, side), side a number, got "
            f"{told}: export it for such images"
        )

    def _visit(self, node: onnx.NodeProto) -> None:
        if node.domain not in DOMAINS:
            raise Refusal(f"of domain {node.domain} is not supported")
        if self._file.fold(node):
            return
        constant = [name for name in node.input if name in self._file.constants]
        if node.op_type == "Add" and len(constant) == 1:
            self._add_bias(node, constant[0])
            return
        made = counterpart(self._file, node)
        if made is None:
            self._tensors[node.output[0]] = self._tensor(node.input[0])
        elif isinstance(made, nn.Module):
            self._tensors[node.output[0]] = self._run(node.name or node.output[0], made, self._tensor(node.input[0]))
            self._may_be_biased(node, made)
        else:
            self._tensors[node.output[0]] = self._step(made, *map(self._tensor, node.input))

    def _may_be_biased(self, node: onnx.NodeProto, made: nn.Module) -> None:
        """Remembers what gave a tensor that one node alone reads."""
        if isinstance(made, nn.Conv2d | nn.Linear) and self._readers[node.output[0]] == 1:
            self._biased[node.output[0]] = made

    def _add_bias(self, node: onnx.NodeProto, constant: str) -> None:
        """Puts a constant, one number a channel, into the bias of the convolution or linear layer before."""
        (source,) = (name for name in node.input if name != constant)
        made, value = self._biased.get(source), self._file.constants[constant]
        self._tensors[node.output[0]] = self._tensor(source)
        if source in self._unknown:
            return
        places = () if isinstance(made, nn.Linear) else (1, 1)
        fits = (1,) * (value.ndim - 1 - len(places)) + (value.size, *places)
        if made is None or value.size not in (1, len(made.bias)) or (value.size > 1 and value.shape != fits):
            raise Refusal(
                "of a constant is not supported, but as the bias of a convolution or a linear layer before it"
            )
        with torch.no_grad():
            made.bias.add_(torch.tensor(value.reshape(-1)))
        self._may_be_biased(node, made)

    def _tensor(self, name: str) -> str:
        if name not in self._tensors:
            raise Refusal(f"of '{name}', a constant or a second output, is not supported")
        return self._tensors[name]

    def _run(self, name: str, module: nn.Module, source: str) -> str:
        """A step that runs a module, under a free name that Python takes."""
        name = re.sub(r"\W+", "_", name)
        while name in self._modules or not name.isidentifier() or name in RESERVED:
            name = f"x{name}"
        self._modules[name] = module
        return self._step(name, source)

    def _step(self, run: str | Callable[..., torch.Tensor], *sources: str) -> str:
        self._steps.append((f"{len(self._steps)}", run, sources))
        return self._steps[-1][0]
