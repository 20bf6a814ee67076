"""FFCV's graph of operations: what stands where it cannot work is refused, and what a loader asks of its operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.decoders import (
    BytesDecoder,
    FloatDecoder,
    IntDecoder,
    NDArrayDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.graph import INITIAL_STATE, DecoderNode, Graph, Node, TransformNode
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.transforms import Convert, ModuleWrapper, Squeeze, ToDevice, ToTensor, ToTorchImage

from ffcv_prune.data.beton import BetonInfo
from ffcv_prune.errors import UserError
from ffcv_prune.loading.augment import Label, PadCropFlip, PlannedDecoder, made_images, planned

Kind = TypeVar("Kind", bound=Operation)

_DECODERS = (BytesDecoder, FloatDecoder, IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder)
_OF_TENSORS = (Convert, ModuleWrapper, Squeeze, ToDevice, ToTorchImage)
_NUMBERS = (FloatDecoder, IntDecoder, Label)


class PlannedImages(NamedTuple):
    """Images that the loader's workers make.

    Attributes:
        decoder: of the images.
        decoder_node: the decoder's number.
        move: what moves them.
        node: number of the node whose memory they are written to; that of `move`, if there is one.
        field: number of the field.
    """

    decoder: PlannedDecoder
    decoder_node: int
    move: PadCropFlip | None
    node: int
    field: int


class PipelineGraph(Graph):
    """FFCV's graph, with our decoders for FFCV's own.

    FFCV's notices a misplaced operation too late or never: it loops, or numba fails in a page.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for node in self.nodes:
            if isinstance(node, DecoderNode):
                node.decoder = planned(node.decoder)

    def allocate_memory(self, batch_size: int, batches_ahead: int) -> Any:
        """FFCV's method. It tries to pin all memory, which opens a CUDA context: here it may where a device is fed."""
        if self.cuda_device is not None:
            return super().allocate_memory(batch_size, batches_ahead)
        made: dict[str, dict[int, Any]] = {}
        for kind, queries in self.collect_requirements()[0].items():
            made[kind] = {node: _allocate(query, batch_size, batches_ahead) for node, query in queries.items()}
        return made

    @property
    def planned(self) -> list[PlannedImages]:
        """What the workers make, for each field that one of our decoders decodes."""
        found = []
        for node in self.nodes:
            if isinstance(node, DecoderNode) and isinstance(node.decoder, PlannedDecoder):
                mover = self._mover(node)
                move = None if mover is None else mover.operation
                found.append(PlannedImages(node.decoder, node.id, move, (mover or node).id, node.f_ix))
        return found

    def _mover(self, node: DecoderNode) -> TransformNode | None:
        """The node of a `PadCropFlip`, if nothing else gets what the decoder makes."""
        followers = self.adjacency_list.get(node, [])
        if len(followers) != 1 or node in self.leaf_nodes.values() or not isinstance(followers[0], TransformNode):
            return None
        return followers[0] if type(followers[0].operation) is PadCropFlip else None

    def collect_requirements(
        self, state: State = INITIAL_STATE, current_node: Node | None = None, *collected: Any, **source: Any
    ) -> Any:
        """FFCV's method, which calls itself for each node with the state that the node before it has left."""
        if isinstance(current_node, TransformNode):
            self._check(current_node, state, source["source_field"])
        allocations, code = super().collect_requirements(state, current_node, *collected, **source)
        if isinstance(current_node, DecoderNode) and isinstance(current_node.decoder, PlannedDecoder):
            mover = self._mover(current_node)
            if mover is not None:  # it is made with the image, which is then seen by nobody
                code["operation"][mover.id] = made_images
                code["operation"][current_node.id] = nothing
                allocations["operation"][current_node.id] = None
        return allocations, code

    def _check(self, node: TransformNode, state: State, field: str) -> None:
        """UserError where the operation cannot work on what it gets: NumPy arrays in compiled code, or tensors."""
        operation, name = node.operation, f'in the pipeline of "{field}", {_name(node)}'
        if isinstance(operation, _DECODERS):
            decoder = self.handlers[field].get_decoder_class().__name__
            raise UserError(f"{name} is not the first operation, or decodes other fields: begin with a {decoder}")
        if isinstance(operation, ToDevice):
            _check_device(name, operation.device)
        if state.jit_mode and isinstance(operation, _OF_TENSORS):
            raise UserError(f"{name} works on tensors and gets a NumPy array: put ToTensor() before it")
        if not state.jit_mode and self._works_on_arrays(node, state, field):
            tensors = next(n for n in _ancestors(node) if isinstance(n.parent, DecoderNode) or n.parent.is_jitted)
            raise UserError(f"{name} works on NumPy arrays and stands after {_name(tensors)}: put it before that")

    def _works_on_arrays(self, node: TransformNode, state: State, field: str) -> bool:
        if isinstance(node.operation, ToTensor):
            return isinstance(state.dtype, torch.dtype)
        node.operation.accept_field(self.handlers[field])
        node.operation.accept_globals(self.metadata[f"f{self.fieldname_to_fix[field]}"], self.memory_read)
        try:
            return bool(node.operation.declare_state_and_memory(state)[0].jit_mode)
        except AssertionError:  # FFCV's own, without a word of what and why
            return True

    def operations(self) -> Iterator[tuple[int, Operation]]:
        """All decoders and other operations, with the numbers of their nodes."""
        for node in self.nodes:
            if isinstance(node, DecoderNode):
                yield node.id, node.decoder
            elif isinstance(node, TransformNode):
                yield node.id, node.operation

    def operations_of(self, kind: type[Kind]) -> Iterator[tuple[int, Kind]]:
        return ((node, operation) for node, operation in self.operations() if isinstance(operation, kind))

    @property
    def random_nodes(self) -> list[int]:
        """The nodes whose operations draw random numbers by the loader's seed."""
        ours = (PlannedDecoder, PadCropFlip)
        return [node for node, operation in self.operations() if isinstance(operation, ours) and operation.random]

    @property
    def output_sizes(self) -> tuple[tuple[int, int] | None, ...]:
        """What each operation's `output_size` is now; None for one that has none."""
        sizes = (getattr(operation, "output_size", None) for _, operation in self.operations())
        return tuple(None if size is None else tuple(size) for size in sizes)

    @property
    def only_numbers(self) -> dict[int, int] | None:
        """The nodes that decode numbers, with their fields; None if anything but these numbers, the images of the
        workers and views is made."""
        numbers, made = {}, {images.node for images in self.planned}
        for node in self.nodes:
            operation: Any = node.decoder if isinstance(node, DecoderNode) else getattr(node, "operation", None)
            if type(operation) in _NUMBERS and self.metadata[f"f{node.f_ix}"].dtype == operation.dtype:
                numbers[node.id] = node.f_ix
            elif node.id not in made and not isinstance(operation, PlannedDecoder) and not _is_view(operation):
                return None
        return numbers

    @property
    def cuda_device(self) -> torch.device | None:
        """The CUDA device that the pipelines deliver to, None if they stay on the CPU."""
        for _, operation in self.operations():
            device = getattr(operation, "device", None)
            if device is not None and torch.device(device).type == "cuda":
                device = torch.device(device)
                return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        return None

    @property
    def decoded_fields(self) -> list[str]:
        """Names of the file's fields that the pipelines read."""
        return [node.field_name for node in self.nodes if isinstance(node, DecoderNode)]

    def places(self, info: BetonInfo) -> tuple[int | None, int | None]:
        """Which of the outputs are images and labels; None and what is left of the others where there are none."""
        sources = [spec.source for spec in self.pipeline_specs.values()]

        def place_of(field: str | None, other: int | None) -> int | None:
            if field in sources:
                return sources.index(field)
            return next((place for place in range(len(sources)) if place != other), None)

        labels = sources.index(info.label_field) if info.label_field in sources else None
        inputs = place_of(info.image_field, labels)
        return inputs, place_of(info.label_field, inputs)


def _allocate(query: Any, batch_size: int, slots: int) -> Any:
    """What FFCV's `allocate_query` makes, unpinned: an array of all slots, or a list of tensors; a tuple of these."""
    if query is None:
        return None
    if not isinstance(query, AllocationQuery):
        return tuple(_allocate(own, batch_size, slots) for own in query)
    shape = (batch_size, *query.shape)
    if isinstance(query.dtype, torch.dtype):
        return [torch.empty(shape, dtype=query.dtype, device=query.device) for _ in range(slots)]
    dtype = torch.from_numpy(np.empty(0, query.dtype)).dtype
    return torch.empty((slots, *shape), dtype=dtype).numpy()


def _is_view(operation: Any) -> bool:
    return type(operation) in (Squeeze, ToTensor) or (type(operation) is ToTorchImage and operation.channels_last)


def nothing(*_: Any) -> None:
    """Code of an operation whose result nobody sees."""


def _check_device(name: str, device: Any) -> None:
    if not isinstance(device, torch.device):
        raise UserError(f"{name} has {device!r}: write ToDevice(torch.device({device!r}))")
    seen = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise UserError(f"{name} has {device}, but this process sees {seen} such devices: use one of them, or the CPU")


def _ancestors(node: Node) -> Iterator[Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _name(node: Node) -> str:
    operation = node.decoder if isinstance(node, DecoderNode) else getattr(node, "operation", node)
    return type(getattr(operation, "module", operation)).__name__
